package ingest

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/proto"

	"ctrloop/schemas/eventpb"
)

func TestIsBot(t *testing.T) {
	for agent, want := range map[string]bool{
		"": false,
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36":                  false,
		"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile Safari/604.1": false,
		"Mozilla/5.0 (Linux; Android 11; CUBOT_X30) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile Safari/537.36":          false,
		"Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)":                                                         true,
		"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/126.0.0.0 Safari/537.36":                    true,
		"curl/8.5.0":             true,
		"python-requests/2.32.0": true,
		"Go-http-client/1.1":     true,
	} {
		if got := IsBot(agent); got != want {
			t.Errorf("IsBot(%q) = %v", agent, got)
		}
	}
}

// A robot's impression is marked and kept.
func TestBotsAreMarked(t *testing.T) {
	d := decoder{salt: []byte("s"), maxBytes: 1 << 14}
	for body, want := range map[string]bool{
		`{"user_agent":"curl/8.5.0"}`:                true,
		`{"user_agent":"Mozilla/5.0 Firefox/127.0"}`: false,
		`{"bot":true,"user_agent":"Mozilla/5.0"}`:    true,
		`{}`: false,
	} {
		j := jsonEvent{ID: "018bcfe5-6800-7000-8000-000000000001", Product: "p", Creative: "c"}
		if err := json.Unmarshal([]byte(body), &j); err != nil {
			t.Fatal(err)
		}
		e, p := d.jsonImpression(&j)
		if p != nil {
			t.Fatal(p)
		}
		var i eventpb.Impression
		if err := proto.Unmarshal(e.value, &i); err != nil {
			t.Fatal(err)
		}
		if got := i.Bot; got != want {
			t.Errorf("%s: bot %v", body, got)
		}
	}
}
