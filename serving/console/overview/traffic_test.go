package overview

import (
	"testing"
	"time"

	"ctrloop/serving/console"
)

func TestBucketsFitThePage(t *testing.T) {
	for _, span := range []time.Duration{0, time.Second, 90 * time.Second, time.Hour, 26 * time.Hour, 40 * 24 * time.Hour,
		3000 * 24 * time.Hour} {
		from := ms(13)
		to := from + span.Milliseconds()
		w := bucket(from, to)
		if n := to/w - from/w + 1; n > maxPoints || n < 1 {
			t.Errorf("%v in buckets of %d ms are %d", span, w, n)
		}
	}
	if w := bucket(ms(0), ms(3600)); w != 60_000 {
		t.Errorf("an hour has buckets of %d ms, want a minute", w)
	}
}

// TestAPartOfABucketIsNoOutage: the last point is left out until all of its time is mature (review N12).
func TestAPartOfABucketIsNoOutage(t *testing.T) {
	var series []console.CTRPoint
	for i := range 4 {
		series = append(series, console.CTRPoint{Time: time.UnixMilli(int64(i) * 60_000)})
	}
	if got := whole(series, 239_000); len(got) != 3 {
		t.Errorf("%d points while the last is open", len(got))
	}
	if got := whole(series, 240_000); len(got) != 4 {
		t.Errorf("%d points when it is whole", len(got))
	}
	if got := whole(series[:2], 0); len(got) != 2 {
		t.Errorf("%d points of two", len(got))
	}
}
