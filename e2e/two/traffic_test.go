package two

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"image"
	"image/color"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ctrloop/schemas"
)

// products of the shop.
var products = []string{"p0", "p1", "p2", "p3"}

// writeProducts writes a catalogue.
func writeProducts(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var list strings.Builder
	for i, id := range products {
		im := image.NewNRGBA(image.Rect(0, 0, 48, 48))
		for y := 8; y < 40; y++ {
			for x := 8; x < 40; x++ {
				im.SetNRGBA(x, y, color.NRGBA{uint8(60 * i), uint8(5 * x), uint8(5 * y), 255})
			}
		}
		f, err := os.Create(filepath.Join(dir, id+".png"))
		if err == nil {
			err = errFirst(png.Encode(f, im), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&list, `{"id":%q,"title":"product %d","category":"home/things","image":"%s.png"}`+"\n", id, i, id)
	}
	if err := os.WriteFile(filepath.Join(dir, "products.jsonl"), []byte(list.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// traffic is the shop's visitors: it asks for creatives, tells of impressions and clicks, and remembers the truth. Like any
// client it sends again what was not acknowledged, to the other edge.
type traffic struct {
	c     *cluster
	f     form
	rng   *rand.Rand
	nowMS int64 // event time up to which everything has been told

	truth   map[string]bool // impression -> it was clicked
	resent  map[string]bool // impressions of a request that was sent more than once
	due     []click
	unaided int // impressions that no serving process decided on
	resends int
	next    int // which process is asked next
}

type click struct {
	impression string
	timeMS     int64
}

func newTraffic(c *cluster, f form, rng *rand.Rand) *traffic {
	tr := &traffic{c: c, f: f, rng: rng, truth: map[string]bool{}, resent: map[string]bool{}, nowMS: time.Now().UnixMilli()}
	if f.event {
		tr.nowMS = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	}
	return tr
}

// String is what has happened so far.
func (tr *traffic) String() string {
	clicked := 0
	for _, k := range tr.truth {
		if k {
			clicked++
		}
	}
	return fmt.Sprintf("%d impressions, %d clicked, %d requests sent again, %d impressions without a decision", len(tr.truth), clicked,
		tr.resends, tr.unaided)
}

// impression is what an edge is told.
type impression struct {
	Type       string  `json:"type"`
	ID         string  `json:"id"`
	Product    string  `json:"product"`
	Creative   string  `json:"creative"`
	Placement  string  `json:"placement"`
	Position   int     `json:"position"`
	User       string  `json:"user"`
	Experiment string  `json:"experiment,omitempty"`
	Variant    string  `json:"variant,omitempty"`
	Version    string  `json:"model_version,omitempty"`
	Policy     string  `json:"policy,omitempty"`
	Propensity float64 `json:"propensity,omitempty"`
}

// perTick is how many slots are filled at a time.
const perTick = 20

// tick tells of what happens next: with clock event during the next minute of event time, else since the last tick.
func (tr *traffic) tick() {
	until := time.Now().UnixMilli()
	if tr.f.event {
		until = tr.nowMS + time.Minute.Milliseconds()
	}
	var lines []any
	var ids []string
	for _, im := range tr.impressions(until) {
		lines, ids = append(lines, im), append(ids, im.ID)
		tr.truth[im.ID] = false
		shown, err := schemas.ParseImpressionID(im.ID)
		if err != nil {
			tr.c.t.Fatal(err)
		}
		if tr.rng.Float64() < clickRate(im.Version, im.Creative) {
			tr.due = append(tr.due, click{im.ID, shown.UnixMilli() + 1 + tr.rng.Int64N(tr.f.reaction.Milliseconds())})
		}
	}
	var later []click
	for i, k := range tr.due {
		if k.timeMS >= until {
			later = append(later, k)
			continue
		}
		tr.truth[k.impression] = true
		ids = append(ids, k.impression)
		lines = append(lines, map[string]any{
			"type": "click", "id": fmt.Sprintf("k-%s-%d", k.impression, i), "impression_id": k.impression, "time_ms": k.timeMS,
		})
	}
	tr.due = later
	tr.rng.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	tr.tell(lines, ids)
	tr.nowMS = until
	if tr.f.event {
		tr.promise(until)
	}
}

// promise says that nothing older than a time follows.
func (tr *traffic) promise(ms int64) {
	tr.tell([]any{map[string]any{"type": "watermark", "time_ms": ms}}, nil)
	tr.nowMS = ms
}

// rest tells of what is still due, and moves event time on until every window has closed.
func (tr *traffic) rest() {
	for len(tr.due) > 0 {
		until := tr.due[0].timeMS
		for _, k := range tr.due {
			until = max(until, k.timeMS)
		}
		if !tr.f.event { // real visitors take their time
			<-time.After(time.Until(time.UnixMilli(until)))
		}
		tr.silent()
	}
	if tr.f.event {
		tr.promise(tr.nowMS + 3*tr.f.window.Milliseconds())
	}
}

// silent is a tick without new impressions, up to the last click that is due.
func (tr *traffic) silent() {
	f := tr.f
	defer func() { tr.f = f }()
	tr.f.slots = -1
	for range 1 + int(f.reaction/time.Minute) {
		tr.tick()
	}
}

// clickRate is the truth: versions and creatives differ.
func clickRate(version, creative string) float64 {
	part := func(s string) float64 {
		h := fnv.New32a()
		_, _ = h.Write([]byte(s))
		return float64(h.Sum32()%1000) / 1000
	}
	return 0.3 + 0.2*part(version) + 0.1*part(creative)
}

// impressions fills slots, by a serving process where one answers.
func (tr *traffic) impressions(untilMS int64) []impression {
	if tr.f.slots < 0 {
		return nil
	}
	out := make([]impression, perTick)
	requests := make([]map[string]any, perTick)
	for i := range out {
		im := &out[i]
		*im = impression{
			Type: "impression", Product: products[tr.rng.IntN(len(products))], Placement: "home", Position: 1,
			User: fmt.Sprint("u", tr.rng.IntN(1_000_000)), Creative: "none",
		}
		requests[i] = map[string]any{"user": im.User, "product": im.Product, "placement": im.Placement, "position": im.Position}
		at := untilMS - 1
		if tr.f.event {
			at = tr.nowMS + tr.rng.Int64N(untilMS-tr.nowMS)
			requests[i]["time_ms"] = at
		}
		im.ID = tr.id(at)
	}
	body, err := json.Marshal(map[string]any{"requests": requests})
	if err != nil {
		tr.c.t.Fatal(err)
	}
	var answer struct {
		Decisions []struct {
			ID         string `json:"impression_id"`
			Creative   string `json:"creative"`
			Experiment string `json:"experiment"`
			Variant    string `json:"variant"`
			Version    string `json:"model_version"`
			Policy     string `json:"policy"`
			Propensity float64
			Error      string
		}
	}
	for range 2 {
		tr.next++
		if err = tr.c.of("serving")[tr.next%2].call("POST", "api", "/v1/decide", body, &answer); err == nil {
			break
		}
	}
	if err != nil { // a shop goes on without
		tr.unaided += len(out)
		return out
	}
	for i, d := range answer.Decisions {
		if d.Error != "" {
			tr.unaided++
			continue
		}
		im := &out[i]
		im.ID, im.Creative, im.Experiment, im.Variant = d.ID, d.Creative, d.Experiment, d.Variant
		im.Version, im.Policy, im.Propensity = d.Version, d.Policy, d.Propensity
	}
	return out
}

// id is a new impression id of a time.
func (tr *traffic) id(ms int64) string {
	h := fmt.Sprintf("%012x7%03x8%015x", ms, tr.rng.IntN(4096), tr.rng.Uint64()>>4)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:32]
}

// tell sends events until an edge has acknowledged them.
func (tr *traffic) tell(events []any, ids []string) {
	if len(events) == 0 {
		return
	}
	var body strings.Builder
	enc := json.NewEncoder(&body)
	for _, e := range events {
		if err := enc.Encode(e); err != nil {
			tr.c.t.Fatal(err)
		}
	}
	sent := 0
	tr.c.wait(5*time.Minute, "an edge to take events", func() string {
		tr.next++
		edge := tr.c.of("ingest")[tr.next%2]
		var answer struct {
			Accepted int
		}
		err := edge.call("POST", "edge", "/v1/events", []byte(body.String()), &answer)
		if err == nil && answer.Accepted != len(events) {
			tr.c.t.Fatalf("%s accepts %d of %d events", edge.name, answer.Accepted, len(events))
		}
		switch {
		case errors.Is(err, errRefused):
			tr.c.t.Fatalf("%s refuses events: %v", edge.name, err)
		case err == nil && sent > 0:
			for _, id := range ids {
				tr.resent[id] = true
			}
			tr.resends++
			return ""
		case err == nil:
			return ""
		case !errors.Is(err, errUnreached):
			sent++
		}
		return edge.name + ": " + err.Error()
	})
}
