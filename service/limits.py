"""The limits of a request: size, number of records, time."""




LARGEST_BODY = 32 * 2**20  # bytes; 10,000 records of a wide contract stay well below
MOST_READING = 64 * 2**20  # bytes of the bodies that have come in part
TIMEOUT = 5  # seconds in which a body must come

MOST_RECORDS = 10_000

MOST_WAITING = 512  # requests; at a few thousand a second the last of them waits a tenth of a second
MOST_BYTES = 8 * 2**20  # of the waiting requests' bodies: some 25,000 records, a quarter of a second
# Records scored in one turn of the event loop, some 4 ms: between turns the others are heard.
MOST_TOGETHER = 512
