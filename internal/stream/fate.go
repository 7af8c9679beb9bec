package stream

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
)

// ErrDataLoss is wrapped by errors that mean that the broker no longer holds what comes next: records
// were deleted before they were read, or a leader came back shorter than it was.
var ErrDataLoss = errors.New("the broker lost records that were not read yet")

// Fate is what becomes of work that has failed over the broker.
type Fate int

const (
	// Retry is what waiting heals, or somebody elsewhere (the network, a coordinator that moves, a password or a right that was
	// withdrawn and comes back, as when it is rotated: password files are read at each connection). Go on from the last commit, with a
	// growing pause; meanwhile the process is not ready. Explain says in words what only a person heals.
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
	case errors.Is(err, ErrBroker), errors.Is(err, ErrPartitionCount), errors.Is(err, kerr.UnsupportedSaslMechanism):
		return Refused
	}
	return Retry
}

// Explain adds to a failure what it means where a broker's word for it does not say: that another process is meant, or whose rights.
// Nothing else changes, neither its fate nor what it wraps.
func Explain(err error) error {
	has := func(errs ...error) bool {
		for _, e := range errs {
			if errors.Is(err, e) {
				return true
			}
		}
		return false
	}
	switch {
	case err == nil:
		return nil
	case has(kerr.ProducerFenced, kerr.InvalidProducerEpoch, kerr.FencedInstanceID, kerr.UnreleasedInstanceID):
		return fmt.Errorf("another process has this id (transactional id or instance id) and has taken over, or the broker ended a transaction "+
			"that stood still: where two are meant to run, give each an id of its own: %w", err)
	case has(kerr.SaslAuthenticationFailed, kerr.IllegalSaslState):
		return fmt.Errorf("the brokers do not know this user or its password (kafka.sasl): %w", err)
	case has(kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed, kerr.ClusterAuthorizationFailed,
		kerr.TransactionalIDAuthorizationFailed):
		return fmt.Errorf("the brokers do not give this user the rights that it needs (kafka-acls): %w", err)
	}
	return err
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
