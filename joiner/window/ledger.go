package window

import (
	"errors"
	"fmt"
)

// Ledger accounts for every event that ever entered a window. All counts are cumulative over the life of the
// partition except Open and Pending, which are what the state holds now.
type Ledger struct {
	ImpressionsIn   uint64 `json:"impressions_in"`   // impressions read, duplicates and late ones included
	Positive        uint64 `json:"positive"`         // labelled positive
	FinalNegative   uint64 `json:"final_negative"`   // labelled negative at the close of their bucket
	Duplicate       uint64 `json:"duplicate"`        // seen again while their bucket was remembered
	LateImpressions uint64 `json:"late_impressions"` // came after their bucket had been forgotten
	Open            uint64 `json:"open"`             // in an open bucket and without a label

	ClicksIn      uint64 `json:"clicks_in"`      // clicks read
	Joined        uint64 `json:"joined"`         // made a positive label
	Repeated      uint64 `json:"repeated"`       // further clicks inside the window
	OrphanExpired uint64 `json:"orphan_expired"` // their bucket closed before an impression came; one that comes after all takes them back
	LateClicks    uint64 `json:"late_clicks"`    // beyond the window, or after the close
	Pending       uint64 `json:"pending"`        // waiting for their impression

	Corrected uint64 `json:"corrected"` // version-2 labels; each belongs to a final negative, so it is in no equation

	Provisional uint64 `json:"provisional"` // provisional negatives written; each impression of theirs is open, positive or final besides
	SampledOut  uint64 `json:"sampled_out"` // final negatives without a label, because only a sample of them is kept
}

// ErrLedger is what every failed equation wraps.
var ErrLedger = errors.New("ledger does not close")

// Check holds both equations, and that positives and joined clicks are the same events.
func (l Ledger) Check() error {
	imps := l.Positive + l.FinalNegative + l.Duplicate + l.LateImpressions + l.Open
	clks := l.Joined + l.Repeated + l.OrphanExpired + l.LateClicks + l.Pending
	switch {
	case imps != l.ImpressionsIn:
		return fmt.Errorf("%w: %d impressions in, but positive %d + final negative %d + duplicate %d + late %d + open %d = %d",
			ErrLedger, l.ImpressionsIn, l.Positive, l.FinalNegative, l.Duplicate, l.LateImpressions, l.Open, imps)
	case clks != l.ClicksIn:
		return fmt.Errorf("%w: %d clicks in, but joined %d + repeated %d + orphan expired %d + late %d + pending %d = %d",
			ErrLedger, l.ClicksIn, l.Joined, l.Repeated, l.OrphanExpired, l.LateClicks, l.Pending, clks)
	case l.Positive != l.Joined:
		return fmt.Errorf("%w: %d positive labels from %d joined clicks", ErrLedger, l.Positive, l.Joined)
	case l.SampledOut > l.FinalNegative:
		return fmt.Errorf("%w: %d of %d final negatives left out of the sample", ErrLedger, l.SampledOut, l.FinalNegative)
	case l.Corrected > l.FinalNegative:
		return fmt.Errorf("%w: %d corrections of %d final negatives", ErrLedger, l.Corrected, l.FinalNegative)
	}
	return nil
}

// Add returns the sum of two ledgers, e.g. over partitions.
func (l Ledger) Add(o Ledger) Ledger {
	l.ImpressionsIn += o.ImpressionsIn
	l.Positive += o.Positive
	l.FinalNegative += o.FinalNegative
	l.Duplicate += o.Duplicate
	l.LateImpressions += o.LateImpressions
	l.Open += o.Open
	l.ClicksIn += o.ClicksIn
	l.Joined += o.Joined
	l.Repeated += o.Repeated
	l.OrphanExpired += o.OrphanExpired
	l.LateClicks += o.LateClicks
	l.Pending += o.Pending
	l.Corrected += o.Corrected
	l.Provisional += o.Provisional
	l.SampledOut += o.SampledOut
	return l
}
