package schemas

// Bounds of an event: the edge refuses what is beyond them, and so does the reader of logs that are replayed.
const (
	// MaxTimeMS is the year 2100: a time beyond it is a unit mistaken, not an event.
	MaxTimeMS = 4_102_444_800_000
	// MaxBeforeMS is how far before its impression a click may claim to be. Clocks differ by seconds, which is the join's business; a
	// day is a wrong unit.
	MaxBeforeMS = 24 * 60 * 60 * 1000
)
