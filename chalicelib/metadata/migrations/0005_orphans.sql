-- What the marker in a store says: which database the store belongs to, and how many sweeps that one
-- had made. One row, made by the first sweep, so that databases made from one template differ.
CREATE TABLE sweep_marker (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    database_id uuid NOT NULL DEFAULT gen_random_uuid(),
    number bigint NOT NULL
);

-- Keys that a sweep found in a store and no row knew.
CREATE TABLE suspects (
    store text NOT NULL,
    key text COLLATE "C" NOT NULL,
    size bigint NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    -- The last sweep that saw it.
    sweep bigint NOT NULL,
    PRIMARY KEY (store, key)
);
