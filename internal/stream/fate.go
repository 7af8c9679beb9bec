package stream

import "errors"

// ErrDataLoss is wrapped by errors that mean that the broker no longer holds what comes next: records
// were deleted before they were read, or a leader came back shorter than it was.
var ErrDataLoss = errors.New("the broker lost records that were not read yet")

// Fate is what becomes of work that has failed over the broker.
type Fate int

const (
	// Retry is what waiting heals, or somebody elsewhere (the network, a coordinator that moves, rights that were withdrawn). Go
	// on from the last commit, with a growing pause.
	Retry Fate = iota
	// Lost is the fate where records that were to be read are gone. No retry brings them back, and going on would skip them
	// without a word: end, and say what is lost and what to do.
	Lost
	// Refused means that the broker or its topics are not what this program needs. End, and say what they must be.
	Refused
)

// FateOf is the one classification of failures that all readers of topics share.
func FateOf(err error) Fate {
	switch {
	case errors.Is(err, ErrDataLoss):
		return Lost
	case errors.Is(err, ErrBroker), errors.Is(err, ErrPartitionCount):
		return Refused
	}
	return Retry
}

// ExitLost is the exit code of a process that ends because records were lost that it had not read.
const ExitLost = 4

// Final wraps a failure that is not Retry with the way out, in words, for the one who must act; a process that ends with it has
// an exit code of its own where records are lost.
func Final(err error, wayOut string) error { return &finalError{err, wayOut} }

type finalError struct {
	err    error
	wayOut string
}

func (e *finalError) Error() string { return e.err.Error() + "; " + e.wayOut }

func (e *finalError) Unwrap() error { return e.err }

// ExitCode is read by the command line.
func (e *finalError) ExitCode() int {
	if FateOf(e.err) == Lost {
		return ExitLost
	}
	return 1
}
