package warehouse

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Suspects names a part of the labels that were made while a circuit breaker was open. The zero value is all of them.
type Suspects struct {
	From, Until        time.Time // impression time, [From, Until); whole hours that begin in it. Zero: no bound
	Product, Placement string    // empty: any
	Partition          *uint16   // of labels.v1; nil: any
}

// SuspectCell is an hour of suspect labels of one product in one placement and one partition of labels.v1.
type SuspectCell struct {
	Hour      time.Time `json:"hour" ch:"hour"`
	Partition uint16    `json:"partition" ch:"part"`
	Product   string    `json:"product" ch:"ad"`
	Placement string    `json:"placement" ch:"place"`
	Labels    uint64    `json:"labels" ch:"labels"`   // suspect impressions, without robots
	Clicked   uint64    `json:"clicked" ch:"clicks"`  // of them
	CTR       float64   `json:"ctr" ch:"ctr"`         // clicked / labels
	Usual     *float64  `json:"usual_ctr" ch:"usual"` // of the other labels there, from a day before to a day behind what was asked for; nil: there are none
	Verdict   string    `json:"verdict" ch:"verdict"` // open, cleared or confirmed
	By        string    `json:"by,omitempty" ch:"who"`
	Reason    string    `json:"reason,omitempty" ch:"why"`
}

// Verdict on suspect labels.
type Verdict string

// Verdicts.
const (
	VerdictOpen      Verdict = "open"      // nobody has looked, or the word before is taken back: they do not count
	VerdictCleared   Verdict = "cleared"   // they count
	VerdictConfirmed Verdict = "confirmed" // somebody has looked: they do not count
)

// ErrNoSuspects: a review is of labels that are there.
var ErrNoSuspects = errors.New("there are no such suspect labels")

// suspectRows are the rows that a review is about; its arguments are those of Suspects.arguments.
const suspectRows = `
	FROM labels_latest
	WHERE suspect = 1 AND bot = 0 AND toStartOfHour(toDateTime(event_time, 'UTC')) >= toDateTime(?, 'UTC')
		AND toStartOfHour(toDateTime(event_time, 'UTC')) < toDateTime(?, 'UTC')
		AND (? = '' OR product = ?) AND (? = '' OR placement = ?) AND (? < 0 OR partition = ?)`

// lastHour is the end of what DateTime holds.
var lastHour = time.Unix(1<<32-1, 0).UTC()

func (s Suspects) bounds() (from, until time.Time) {
	from, until = s.From, s.Until
	if from.IsZero() {
		from = time.Unix(0, 0)
	}
	if until.IsZero() {
		until = lastHour
	}
	return from.UTC(), until.UTC()
}

func (s Suspects) arguments() []any {
	from, until := s.bounds()
	partition := int64(-1)
	if s.Partition != nil {
		partition = int64(*s.Partition)
	}
	return []any{from.Unix(), until.Unix(), s.Product, s.Product, s.Placement, s.Placement, partition, partition}
}

// Suspect lists cells with suspect labels in the order of time, with the last word on each.
func (db *DB) Suspect(ctx context.Context, s Suspects) ([]SuspectCell, error) {
	from, until := s.bounds()
	const day = 24 * 60 * 60
	cells := []SuspectCell{}
	err := db.Select(ctx, &cells, `
		SELECT hour, part, toString(product) AS ad, toString(placement) AS place, labels, clicks, clicks / labels AS ctr,
			if(others > 0, others_clicked / others, NULL) AS usual, toString(said) AS verdict, who, why
		FROM
		(
			SELECT toStartOfHour(toDateTime(event_time, 'UTC')) AS hour, partition AS part, product, placement,
				count() AS labels, toUInt64(sum(clicked)) AS clicks`+suspectRows+`
			GROUP BY hour, part, product, placement
		) AS cells
		LEFT JOIN
		(
			SELECT hour, partition AS part, product, placement, argMax(verdict, time) AS said, argMax(by, time) AS who,
				argMax(reason, time) AS why
			FROM label_reviews GROUP BY hour, part, product, placement
		) AS reviews USING (hour, part, product, placement)
		LEFT JOIN
		(
			SELECT product, placement, count() AS others, toUInt64(sum(clicked)) AS others_clicked
			FROM labels_latest
			WHERE suspect = 0 AND bot = 0 AND event_time >= toDateTime(?, 'UTC') AND event_time < toDateTime(?, 'UTC')
			GROUP BY product, placement
		) AS usually USING (product, placement)
		ORDER BY hour, part, ad, place`,
		append(s.arguments(), max(0, from.Unix()-day), min(lastHour.Unix(), until.Unix()+day))...)
	if err != nil {
		return nil, fmt.Errorf("list suspect labels: %w", err)
	}
	return cells, nil
}

// Reviewed is what a review was about.
type Reviewed struct {
	Cells  uint64 `json:"cells"`
	Labels uint64 `json:"labels"`
}

// Review says the last word on all cells with suspect labels in s, and who says so and why. Figures follow at once; rollups of
// the days are out of use until they are made anew. It can be said otherwise at any time.
func (db *DB) Review(ctx context.Context, s Suspects, v Verdict, by, reason string) (Reviewed, error) {
	var r Reviewed
	err := db.QueryRow(ctx, `
		SELECT uniqExact(toStartOfHour(toDateTime(event_time, 'UTC')), partition, product, placement), count()`+suspectRows,
		s.arguments()...).Scan(&r.Cells, &r.Labels)
	if err != nil {
		return r, fmt.Errorf("look for suspect labels: %w", err)
	}
	if r.Cells == 0 {
		return r, ErrNoSuspects
	}
	err = db.Exec(ctx, `
		INSERT INTO label_reviews (hour, partition, product, placement, verdict, by, reason, labels)
		SELECT toStartOfHour(toDateTime(event_time, 'UTC')) AS hour, partition, product, placement, ?, ?, ?, count()`+suspectRows+`
		GROUP BY hour, partition, product, placement`, append([]any{string(v), by, reason}, s.arguments()...)...)
	if err != nil {
		return r, fmt.Errorf("keep the review of suspect labels: %w", err)
	}
	return r, nil
}
