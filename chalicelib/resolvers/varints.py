"""Numbers of any size in as few bytes as they need (https://github.com/multiformats/unsigned-varint),
as CIDs, archives and Protocol Buffers have them."""


def varint(number: int) -> bytes:
    """A number's bytes."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and the position behind it. Raises ``ValueError``."""
    number = 0
    for index, byte in enumerate(data[at : at + 9]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, at + index + 1
    raise ValueError("A number is cut off, or is too large.")
