package control

import (
	"context"
	"errors"
	"fmt"
)

// Reader follows the control log. All methods are safe for concurrent use.
type Reader interface {
	// State is the fold as of now. It is shared: do not change it.
	State() *State
	// Changed is closed when the state next changes. To miss nothing, take the channel first and then State.
	Changed() <-chan struct{}
}

// Log is the control log as its users see it (internal/controllog). All methods are safe for concurrent use.
type Log interface {
	Reader
	// Append writes a command and returns when this process has folded it. The error is a *Rejection, or says that the
	// outcome is unknown: the same event can then be appended again, its id makes that harmless.
	Append(ctx context.Context, e Event) (Answer, error)
}

// Answer is what became of a command that was not rejected. Who appends must look: a repeated command has changed
// nothing now, so doing the same again would not end.
type Answer string

// Answers.
const (
	Applied  Answer = "applied"  // it is part of the state
	Repeated Answer = "repeated" // its id was applied before; nothing has changed now
)

// Reason of a rejection. The list is closed.
type Reason string

// Reasons.
const (
	Conflict Reason = "conflict" // the entity has moved on since the command was decided
	Invalid  Reason = "invalid"  // not a legal transition from this state, or no command at all
	Fenced   Reason = "fenced"   // the lease under which it was decided has another holder
	Outdated Reason = "outdated" // of an older format than the log
	Behind   Reason = "behind"   // this process does not understand the log any more; only an append says so
)

// Rejection is why a command was not applied. It is an error that wraps ErrConflict, ErrInvalid, ErrFenced, ErrOutdated
// or ErrBehind.
type Rejection struct {
	Reason Reason
	Err    error
}

func (r *Rejection) Error() string { return r.Err.Error() }
func (r *Rejection) Unwrap() error { return r.Err }

// Errors that rejections wrap.
var (
	ErrConflict = errors.New("the entity has changed since the command was decided: read it again and decide anew")
	ErrInvalid  = errors.New("command not valid in this state")
	ErrFenced   = errors.New("another process holds the lease of this role by now")
	ErrOutdated = errors.New("the log has commands of a newer format: upgrade this process")
	ErrBehind   = errors.New("the log has commands that this release does not know: upgrade this process")
)

var reasons = []struct {
	err    error
	reason Reason
}{{ErrConflict, Conflict}, {ErrFenced, Fenced}, {ErrOutdated, Outdated}, {ErrBehind, Behind}, {ErrInvalid, Invalid}}

// Reject makes a rejection of a command out of an error that wraps one of the above.
func Reject(e Event, err error) *Rejection {
	r := &Rejection{Reason: Invalid, Err: fmt.Errorf("%s on %s: %w", e.Type, e.Entity, err)}
	for _, x := range reasons {
		if errors.Is(err, x.err) {
			r.Reason = x.reason
			break
		}
	}
	return r
}

// Rejected says whether an append was rejected, and why: then it has changed nothing, and doing it again will not either.
// Any other error leaves the outcome unknown.
func Rejected(err error) (*Rejection, bool) { return errors.AsType[*Rejection](err) }
