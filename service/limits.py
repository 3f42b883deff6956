"""The limits of a request: size, number of records, time."""

MAX_BODY_BYTES = 32 * 2**20  # bytes; 10,000 records of a wide contract stay well below
MAX_PARTIAL_BYTES = 64 * 2**20  # bytes of all bodies that have arrived in part
TIMEOUT = 5  # seconds in which a body must arrive

MAX_RECORDS = 10_000

MAX_WAITING = 512  # requests; at a few thousand a second the last of them waits a tenth of a second
MAX_WAITING_BYTES = 8 * 2**20  # of their bodies: some 25,000 records, which take a quarter of a second
# Records scored at once, which takes some 4 ms: in between the event loop serves other connections.
MAX_BATCH = 512
