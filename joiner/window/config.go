package window

import (
	"errors"
	"fmt"
	"math"
)

// None is a time or watermark that is not known yet; it is smaller than every time.
const None = math.MinInt64

// maxBucketMS: a record has 16 bits for the milliseconds since the start of its bucket.
const maxBucketMS = 1 << 16

// Config says how the join is done. Changing Window or Bucket over existing state is refused by the service.
type Config struct {
	WindowMS   int64 // a click counts until this long after its impression, ms
	LatenessMS int64 // allowed disorder: the watermark stays this far behind, ms
	BucketMS   int64 // width of a time bucket, ms; a final negative comes at most this much late
	// CorrectionMS is how long after its window an impression is remembered, ms: a click up to then corrects its label, and the
	// impression itself, if it comes only now, still gets one. 0: it is forgotten with its window.
	CorrectionMS int64
	// ObserveMS after the end of its bucket an impression without a click gets a provisional negative, ms. 0: none. With
	// it, provisional labels are version 1 and all others count from 2.
	ObserveMS int64
	// NegativeRate keeps one negative of so many, chosen by id, with this weight; 0 and 1 keep all.
	NegativeRate int64
	Seed         uint64 // of the hash tables, so that ids cannot be crafted to collide; no effect on results
}

// Validate returns every problem.
func (c Config) Validate() error {
	var errs []error
	if c.WindowMS <= 0 {
		errs = append(errs, fmt.Errorf("window of %d ms: want more than 0", c.WindowMS))
	}
	if c.LatenessMS < 0 {
		errs = append(errs, fmt.Errorf("lateness of %d ms: want 0 or more", c.LatenessMS))
	}
	if c.BucketMS <= 0 || c.BucketMS > maxBucketMS {
		errs = append(errs, fmt.Errorf("bucket of %d ms: want 1 to %d", c.BucketMS, maxBucketMS))
	}
	if c.ObserveMS < 0 || c.ObserveMS >= c.WindowMS {
		errs = append(errs, fmt.Errorf("observation of %d ms: want 0 (none) or less than the window", c.ObserveMS))
	}
	if c.CorrectionMS < 0 || c.NegativeRate < 0 {
		errs = append(errs, fmt.Errorf("correction of %d ms and negative rate %d: want 0 or more", c.CorrectionMS, c.NegativeRate))
	}
	return errors.Join(errs...)
}
