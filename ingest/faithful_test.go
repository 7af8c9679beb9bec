package ingest

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

//go:embed testdata/robots.txt.gz
var robotAgents []byte

//go:embed testdata/people.txt
var peoplesAgents string

// TestRobots: the examples of the public list itself, but for those that people look like, too.
func TestRobots(t *testing.T) {
	z, err := gzip.NewReader(bytes.NewReader(robotAgents))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	n, missed := 0, []string(nil)
	for agent := range strings.SplitSeq(string(raw), "\n") {
		n++
		if !IsBot(agent) {
			missed = append(missed, agent)
		}
	}
	if n < 2000 || len(missed)*50 > n {
		t.Errorf("%d of %d robots are not seen:\n%s", len(missed), n, strings.Join(missed, "\n"))
	}
}

// TestPeople: browsers, apps and browsers inside of apps.
func TestPeople(t *testing.T) {
	for agent := range strings.Lines(peoplesAgents) {
		if agent = strings.TrimSpace(agent); IsBot(agent) {
			t.Errorf("%q is taken for a robot", agent)
		}
	}
	for _, agent := range []string{
		"okhttp/4.12.0", "axios/1.7.2",
		"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/18.0 Safari/605.1.15 Technology Preview",
	} {
		if IsBot(agent) {
			t.Errorf("%q is taken for a robot", agent)
		}
	}
}

func BenchmarkIsBot(b *testing.B) {
	people := strings.Split(strings.TrimSpace(peoplesAgents), "\n")
	for i := 0; b.Loop(); i++ {
		IsBot(people[i%len(people)])
	}
}

func decode(t *testing.T, body string) (event, *problem) {
	t.Helper()
	return decoder{salt: []byte("s"), maxBytes: 1 << 14}.json([]byte(body), true, "")
}

const someID = "018bcfe5-6800-7000-8000-000000000001"

// TestNothingIsChangedSilently: what cannot be taken as it was sent is refused with a reason.
func TestNothingIsChangedSilently(t *testing.T) {
	imp := func(rest string) string {
		return fmt.Sprintf(`{"type":"impression","id":%q,"creative":"c",%s}`, someID, rest)
	}
	for _, c := range []struct {
		name, body string
		want       schemas.DeadLetterReason
	}{
		{"as it should be", imp(`"product":"p"`), ""},
		{"a character in two halves", imp(`"product":"\ud83d\ude00"`), ""},
		{"a backslash and a u", imp(`"product":"\\ud83d"`), ""},
		{"Latin-1", imp("\"product\":\"caf\xe9\""), schemas.DeadMalformed},
		{"half a character", imp(`"product":"a\ud83d"`), schemas.DeadMalformed},
		{"the other half", imp(`"product":"\ude00b"`), schemas.DeadMalformed},
		{"another case", imp(`"product":"p","PRODUCT":"q"`), schemas.DeadBadField},
		{"another case alone", imp(`"Product":"p"`), schemas.DeadBadField},
		{"a name twice", imp(`"product":"p","product":"q"`), schemas.DeadBadField},
		{"propensity 0", imp(`"product":"p","propensity":0`), schemas.DeadBadField},
		{"propensity 1e-320", imp(`"product":"p","propensity":1e-320`), schemas.DeadBadField},
		{"propensity 1e-9", imp(`"product":"p","propensity":1e-9`), ""},
		{"propensity 1.1", imp(`"product":"p","propensity":1.1`), schemas.DeadBadField},
		{"no propensity", imp(`"product":"p","propensity":null`), ""},
		{"arm_share 0", imp(`"product":"p","arm_share":0`), schemas.DeadBadField},
		{"arm_share 1.5", imp(`"product":"p","arm_share":1.5`), schemas.DeadBadField},
		{"arm_share -0.1", imp(`"product":"p","arm_share":-0.1`), schemas.DeadBadField},
		{"arm_share 0.1", imp(`"product":"p","arm_share":0.1`), ""},
		{"no arm_share", imp(`"product":"p","arm_share":null`), ""},
		{"128 bytes of request", imp(`"product":"p","request_id":"` + strings.Repeat("r", 128) + `"`), ""},
		{"129 bytes of request", imp(`"product":"p","request_id":"` + strings.Repeat("r", 129) + `"`), schemas.DeadBadField},
	} {
		_, p := decode(t, c.body)
		got := schemas.DeadLetterReason("")
		if p != nil {
			got = p.reason
		}
		if got != c.want {
			t.Errorf("%s: %v, want reason %q", c.name, p, c.want)
		}
	}
	raw := decoder{salt: []byte("s"), maxBytes: 1 << 14}
	if _, p := raw.raw(schemas.TopicRawImpressions, []byte(imp(`"product":"p","theirs":1,"theirs2":{"a":[1]}`))); p != nil {
		t.Errorf("raw record with fields of others: %v", p)
	}
}

// TestEmptyUserIsNobody: "" is what many writers send for no user.
func TestEmptyUserIsNobody(t *testing.T) {
	for user, anonymous := range map[string]bool{`""`: true, `null`: true, `0`: true, `"a"`: false} {
		e, p := decode(t, fmt.Sprintf(`{"type":"impression","id":%q,"product":"p","creative":"c","user":%s}`, someID, user))
		if p != nil {
			t.Fatal(p)
		}
		var i eventpb.Impression
		if err := proto.Unmarshal(e.value, &i); err != nil {
			t.Fatal(err)
		}
		if (i.User == 0) != anonymous {
			t.Errorf("%s: user %d", user, i.User)
		}
	}
}

// TestClicksOfRobotsAreMarked, by a flag or by the agent; ids of other systems fit.
func TestClicksOfRobotsAreMarked(t *testing.T) {
	for more, want := range map[string]bool{`"bot":true`: true, `"user_agent":"curl/8.5.0"`: true,
		`"user_agent":"Mozilla/5.0 Firefox/127.0"`: false} {
		id := strings.Repeat("g", 128) // a gclid has about 100
		e, p := decode(t, fmt.Sprintf(`{"type":"click","impression_id":%q,"id":%q,"time_ms":1700000000000,%s}`, someID, id, more))
		if p != nil {
			t.Fatal(p)
		}
		var c eventpb.Click
		if err := proto.Unmarshal(e.value, &c); err != nil {
			t.Fatal(err)
		}
		if c.Bot != want || string(c.Id) != id {
			t.Errorf("%s: %v", more, &c)
		}
	}
}

// TestFutureIsRefusedAtTheDoor: with clock wall an impression beyond the allowed skew is not taken and then thrown away.
func TestFutureIsRefusedAtTheDoor(t *testing.T) {
	cfg := testConfig()
	cfg.Clock = ClockWall
	now := time.Now()
	e := &Edge{cfg: cfg, now: func() time.Time { return now }, decoder: decoder{maxBytes: 1 << 14}}
	body := func(at time.Time) []byte {
		return fmt.Appendf(nil, `{"type":"impression","id":%q,"product":"p","creative":"c"}`, testID(at.UnixMilli(), 1))
	}
	for ahead, want := range map[time.Duration]int{0: 1, cfg.AllowedSkew: 1, cfg.AllowedSkew + time.Second: 0, 24 * time.Hour: 0} {
		b, err := e.parse("application/json", body(now.Add(ahead)))
		if err != nil {
			t.Fatal(err)
		}
		if b.accepted() != want || want == 0 && b.reasons[schemas.DeadBadTime] != 1 {
			t.Errorf("%v ahead: %d accepted, refused for %v", ahead, b.accepted(), b.rejected)
		}
	}
}
