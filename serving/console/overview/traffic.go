package overview

import (
	"context"
	"time"

	"ctrloop/internal/warehouse/query"
	"ctrloop/schemas/control"
	"ctrloop/serving/console"
	"ctrloop/serving/rollout"
)

// traffic is what a scan of the mature labels says.
type traffic struct {
	newestMS, horizonMS int64 // event time; 0: no labels
	series              []console.CTRPoint
	byCreative          map[string]counts
	champion            string // whose figures these are:
	championImpressions int64
	championClicks      int64
}

type counts struct{ impressions, clicks int64 }

// widths of the buckets of the series.
var widths = []time.Duration{
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 15 * time.Second, 30 * time.Second,
	time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour,
}

// maxPoints of the series: fewer than the page takes, for each to hold enough clicks.
const maxPoints = 120

// bucket is the smallest width that covers a span of event time with at most maxPoints buckets, which begin at
// multiples of the width. Milliseconds.
func bucket(fromMS, toMS int64) int64 {
	for _, w := range widths {
		if ms := w.Milliseconds(); toMS/ms-fromMS/ms < maxPoints {
			return ms
		}
	}
	day := widths[len(widths)-1].Milliseconds()
	return ((toMS-fromMS)/(day*(maxPoints-1)) + 1) * day
}

// readTraffic makes one scan for the series, the creatives and the champion. The ends of the span come from the
// parts' indexes and two small columns.
func (o *Page) readTraffic(ctx context.Context, st *control.State) (traffic, error) {
	t := traffic{byCreative: map[string]counts{}}
	var from int64
	err := o.p.Warehouse.QueryRow(ctx, query.Text("span")+oneThread).Scan(&from, &t.newestMS, &t.horizonMS)
	if err != nil || t.newestMS == 0 {
		return t, err
	}
	route := st.Routes[rollout.Logical]
	t.champion = route.Champion
	since, err := o.eventTimeAt(ctx, route.Since)
	if err != nil || t.horizonMS < from {
		return t, err
	}
	width := bucket(from, t.horizonMS)
	var rows []struct {
		Creative string `ch:"ad"`
		Slot     int64  `ch:"slot"`
		IsSlot   uint8  `ch:"is_slot"`
		N        uint64 `ch:"n"`
		K        uint64 `ch:"k"`
		LiveN    uint64 `ch:"live_n"`
		LiveK    uint64 `ch:"live_k"`
	}
	err = o.p.Warehouse.Select(ctx, &rows, query.Text("traffic")+oneThread, width, route.Champion, since)
	if err != nil {
		return t, err
	}
	for _, r := range rows {
		if r.IsSlot == 0 {
			t.byCreative[r.Creative] = counts{int64(r.N), int64(r.K)}
			continue
		}
		t.series = append(t.series, console.CTRPoint{Time: time.UnixMilli(r.Slot * width).UTC(), Impressions: int64(r.N), Clicks: int64(r.K)})
		t.championImpressions += int64(r.LiveN)
		t.championClicks += int64(r.LiveK)
	}
	return t, nil
}

// eventTimeAt is the event time of the traffic at a time of the wall: the newest label that was there. 0: none was.
func (o *Page) eventTimeAt(ctx context.Context, wall time.Time) (int64, error) {
	if wall.IsZero() {
		return 0, nil
	}
	if !o.p.EventClock {
		return wall.UnixMilli(), nil
	}
	var ms int64
	err := o.p.Warehouse.QueryRow(ctx, query.Text("event_time_at")+oneThread, wall.Unix()).Scan(&ms)
	return ms, err
}

// whole leaves out the last point of a series while its stretch of time is not mature as a whole: a part of it looks like
// an outage.
func whole(series []console.CTRPoint, horizonMS int64) []console.CTRPoint {
	n := len(series)
	if n < 3 {
		return series
	}
	width := series[n-1].Time.Sub(series[n-2].Time)
	for i := 1; i < n; i++ {
		width = min(width, series[i].Time.Sub(series[i-1].Time))
	}
	if series[n-1].Time.Add(width).UnixMilli() > horizonMS {
		return series[:n-1]
	}
	return series
}
