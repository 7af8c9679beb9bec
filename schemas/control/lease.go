package control

import (
	"fmt"
	"time"
)

// Role has one writer at a time, the holder of its lease.
type Role string

// Roles.
const (
	RoleSwap        Role = "swap"        // states of model versions
	RoleRollout     Role = "rollout"     // starts experiments
	RoleExperiments Role = "experiments" // steps and decides them
	RoleTrainer     Role = "trainer"     // jobs, and versions that they make
	RolePairer      Role = "pairer"      // data sets
	RoleRollups     Role = "rollups"     // tables by day
	RoleAudit       Role = "audit"       // the audit of labels
)

// Lease says who holds a role. Each acquisition has a higher epoch, and the fold rejects what a holder of an earlier one
// still sends: no clock takes part in that.
type Lease struct {
	Role  Role   `json:"role"`
	Owner string `json:"owner"` // a process; empty: nobody
	// Epoch of the acquisition; the fold fills it in.
	Epoch int64     `json:"epoch,omitempty"`
	Since time.Time `json:"since,omitzero"` // time of the command, as its writer saw it
}

// Holds says whether the owner has the role in this epoch.
func (l Lease) Holds(owner string, epoch int64) bool {
	return owner != "" && l.Owner == owner && l.Epoch == epoch
}

// fence rejects a command that was decided under a lease that is over.
func (s *State) fence(e Event) error {
	if e.Role == "" || e.Type == LeaseAcquired {
		return nil
	}
	if l := s.Leases[e.Role]; l.Owner == "" || l.Epoch != e.Epoch {
		return fmt.Errorf("%w: %s has epoch %d, the command is of epoch %d", ErrFenced, e.Role, l.Epoch, e.Epoch)
	}
	return nil
}

func (s *State) lease(e Event) error {
	l, err := decode[Lease](e)
	if err == nil {
		err = names(e, LeaseEntity(l.Role))
	}
	switch {
	case err != nil:
		return err
	case l.Role == "" || len(l.Role) > 100 || len(l.Owner) > 200:
		return fmt.Errorf("%w: lease of %q by %q", ErrInvalid, l.Role, l.Owner)
	case e.Type == LeaseReleased && e.Role != l.Role:
		return fmt.Errorf("%w: only its holder releases the lease of %s", ErrInvalid, l.Role)
	case e.Type == LeaseReleased:
		l.Owner, l.Epoch = "", s.Leases[l.Role].Epoch
	case l.Owner == "":
		return fmt.Errorf("%w: lease of %s without an owner", ErrInvalid, l.Role)
	case e.Expect == nil: // two candidates that saw the same holder fall silent: one must lose
		return fmt.Errorf("%w: acquiring the lease of %s needs the version that it was decided on", ErrInvalid, l.Role)
	default:
		l.Epoch = s.Versions[e.Entity] + 1
	}
	l.Since = e.Time
	s.Leases[l.Role] = l
	return nil
}
