package evidence

import (
	"errors"
	"fmt"
)

// Ledger accounts for every label that was ever read of a partition. All counts are cumulative over the life of the evidence.
type Ledger struct {
	In          uint64 `json:"in"`          // labels read
	Positive    uint64 `json:"positive"`    // counted: an impression and its click
	Negative    uint64 `json:"negative"`    // counted: an impression
	Corrected   uint64 `json:"corrected"`   // counted: the click of an impression that was a negative
	Withdrawn   uint64 `json:"withdrawn"`   // a correction says that a counted impression was a robot's
	Provisional uint64 `json:"provisional"` // not counted: the impression is still open
	Robots      uint64 `json:"robots"`      // not counted: an impression or a click of a robot
	Unreadable  uint64 `json:"unreadable"`  // not counted: no label of ours

	Impressions uint64 `json:"impressions"` // in all cells of all generations, suspect ones too
	Clicks      uint64 `json:"clicks"`      // the same

	Suspect  uint64 `json:"suspect"`  // labels that came to a cell and were made while a breaker was open
	Flipped  uint64 `json:"flipped"`  // corrections that took their impression to or from the suspect ones
	Unsure   uint64 `json:"unsure"`   // corrections of which nobody knows any more whether the negative was suspect
	Weighted uint64 `json:"weighted"` // labels that stand for more than one impression: the join keeps a sample, evidence counts rows
	Reopened uint64 `json:"reopened"` // cells that were made anew because their hour was closed
	Forced   uint64 `json:"forced"`   // hours that were closed early because memory was short
}

// ErrLedger is what every failed equation wraps.
var ErrLedger = errors.New("the evidence's ledger does not close")

// Check holds the equations: every label is counted once, and what cells hold is what labels said.
func (l Ledger) Check() error {
	sum := l.Positive + l.Negative + l.Corrected + l.Withdrawn + l.Provisional + l.Robots + l.Unreadable
	switch {
	case sum != l.In:
		return fmt.Errorf("%w: %d labels in, but positive %d + negative %d + corrected %d + withdrawn %d + provisional %d + robots %d "+
			"+ unreadable %d = %d", ErrLedger, l.In, l.Positive, l.Negative, l.Corrected, l.Withdrawn, l.Provisional, l.Robots, l.Unreadable, sum)
	case l.Impressions != l.Positive+l.Negative-l.Withdrawn:
		return fmt.Errorf("%w: %d impressions in cells, but positive %d + negative %d - withdrawn %d",
			ErrLedger, l.Impressions, l.Positive, l.Negative, l.Withdrawn)
	case l.Clicks != l.Positive+l.Corrected:
		return fmt.Errorf("%w: %d clicks in cells, but positive %d + corrected %d", ErrLedger, l.Clicks, l.Positive, l.Corrected)
	}
	return nil
}

// Counts lists the fields in their order on the wire.
func (l *Ledger) Counts() []*uint64 {
	return []*uint64{
		&l.In, &l.Positive, &l.Negative, &l.Corrected, &l.Withdrawn, &l.Provisional, &l.Robots, &l.Unreadable,
		&l.Impressions, &l.Clicks, &l.Suspect, &l.Flipped, &l.Unsure, &l.Weighted, &l.Reopened, &l.Forced,
	}
}

// Add returns the sum of two ledgers, e.g. over partitions.
func (l Ledger) Add(o Ledger) Ledger {
	mine, other := l.Counts(), o.Counts()
	for i := range mine {
		*mine[i] += *other[i]
	}
	return l
}
