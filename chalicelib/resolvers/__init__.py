"""Where blobs also live: networks that find content by its hash."""
