package ingest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ctrloop/internal/httpapi"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/internal/telemetry"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

var update = flag.Bool("update", false, "rewrite golden files")

func newEdge(t testing.TB, cfg Config) (*streamtest.Broker, *Edge) {
	t.Helper()
	b := streamtest.Start(t, 2)
	e, err := NewEdge(cfg, b.Config, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return b, e
}

func post(e *Edge, contentType, encoding string, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/v1/events", bytes.NewReader(body))
	r.Header.Set(httpapi.HeaderRequestID, "test")
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	if encoding != "" {
		r.Header.Set("Content-Encoding", encoding)
	}
	w := httptest.NewRecorder()
	e.Handler().ServeHTTP(w, r)
	return w
}

// TestGolden sends each testdata/edge/*.req (first line: content type, rest: body) and compares status and
// answer with the .want beside it, and the raw topics with what was accepted.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/edge/*.req")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden requests", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".req"), func(t *testing.T) {
			req, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			contentType, body, _ := bytes.Cut(req, []byte("\n"))
			b, e := newEdge(t, Default())
			w := post(e, string(contentType), "", body)
			var pretty bytes.Buffer
			if err := json.Indent(&pretty, w.Body.Bytes(), "", "  "); err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprintf("%d\n%s", w.Code, pretty.Bytes())
			golden := strings.TrimSuffix(f, ".req") + ".want"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
			var a answer
			if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
				t.Fatal(err)
			}
			if n := countRaw(t, b); n != a.Accepted {
				t.Errorf("%d events in the raw topics, the answer says %d", n, a.Accepted)
			}
		})
	}
}

// countRaw counts events of the raw topics; a watermark in every partition counts as one.
func countRaw(t *testing.T, b *streamtest.Broker) int {
	d := decoder{maxBytes: 1 << 20}
	n, marks, partitions := 0, 0, 0
	for _, topic := range []string{schemas.TopicRawImpressions, schemas.TopicRawClicks} {
		partitions += 2
		for _, rs := range streamtest.Records(t, b.Config, topic) {
			for _, r := range rs {
				e, p := d.raw(topic, r.Value)
				if p != nil {
					t.Fatalf("the edge wrote what the service refuses: %v", p)
				}
				if e.kind == watermark {
					marks++
				} else {
					n++
				}
			}
		}
	}
	if marks%partitions != 0 {
		t.Errorf("watermark in %d of %d partitions", marks, partitions)
	}
	return n + marks/partitions
}

func protobufBody(t testing.TB, n int) []byte {
	var body []byte
	var err error
	for i := range n {
		if body, err = eventpb.AppendBody(body, testImpression(1_700_000_000_000+int64(i), uint64(i))); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			if body, err = eventpb.AppendBody(body, testClick(1_700_000_000_000+int64(i), uint64(i), 1_700_000_000_100)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return body
}

func TestProtobufAndCompression(t *testing.T) {
	body := protobufBody(t, 100)
	var gz bytes.Buffer
	z := gzip.NewWriter(&gz)
	z.Write(body)
	z.Close()
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for encoding, sent := range map[string][]byte{"": body, "gzip": gz.Bytes(), "zstd": zw.EncodeAll(body, nil)} {
		b, e := newEdge(t, Default())
		w := post(e, "application/x-protobuf", encoding, sent)
		if w.Code != 200 || strings.TrimSpace(w.Body.String()) != `{"accepted":110}` {
			t.Errorf("encoding %q: %d %s", encoding, w.Code, w.Body)
		}
		if n := countRaw(t, b); n != 110 {
			t.Errorf("encoding %q: %d events in the raw topics, want 110", encoding, n)
		}
		if n := e.inFlight.Used(); n != 0 {
			t.Errorf("%d bytes are in flight after the answer", n)
		}
	}
}

func TestBrokenProtobufLeavesNothing(t *testing.T) {
	b, e := newEdge(t, Default())
	body := protobufBody(t, 10)
	for _, cut := range [][]byte{body[:len(body)-1], append(bytes.Clone(body), 0x22, 0), append(bytes.Clone(body), 0xff)} {
		if w := post(e, "application/x-protobuf", "", cut); w.Code != 400 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	if n := countRaw(t, b); n != 0 {
		t.Errorf("%d events were taken from broken bodies", n)
	}
}

func TestBounds(t *testing.T) {
	cfg := Default()
	cfg.Edge.MaxBodyBytes, cfg.Edge.MaxDecodedBytes, cfg.Edge.MaxInFlightBytes = 10_000, 50_000, 200_000
	_, e := newEdge(t, cfg)
	if w := post(e, "application/json", "", bytes.Repeat([]byte(" "), 10_001)); w.Code != 413 {
		t.Errorf("body too large: %d %s", w.Code, w.Body)
	}
	bomb := bytes.Repeat([]byte(" "), 5_000_000)
	var gz bytes.Buffer
	z := gzip.NewWriter(&gz)
	z.Write(bomb)
	z.Close()
	zw, _ := zstd.NewWriter(nil)
	for encoding, sent := range map[string][]byte{"gzip": gz.Bytes(), "zstd": zw.EncodeAll(bomb, nil)} {
		if w := post(e, "application/json", encoding, sent); w.Code != 413 {
			t.Errorf("%s bomb: %d %s", encoding, w.Code, w.Body)
		}
	}
	if w := post(e, "application/json", "br", nil); w.Code != 415 {
		t.Errorf("unknown encoding: %d", w.Code)
	}
	if w := post(e, "application/json", "gzip", []byte("no gzip")); w.Code != 400 {
		t.Errorf("broken gzip: %d", w.Code)
	}
	hold := e.inFlight.Hold()
	defer hold.Release()
	if _, err := hold.Read(io.LimitReader(zeros{}, 198_999), 198_999, 1<<20); err != nil {
		t.Fatal(err)
	}
	w := post(e, "application/json", "", bytes.Repeat([]byte(" "), 5000))
	if w.Code != 429 || w.Header().Get("Retry-After") == "" {
		t.Errorf("overload: %d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
	if n := e.inFlight.Used(); n != 199_000 {
		t.Errorf("a refused request keeps %d bytes reserved", n-199_000)
	}
}

// S5: a body that is announced and does not come holds next to nothing, and shuts out nobody. (How long it may take to come
// is the listener's business: httpapi.)
func TestAnnouncedBodiesHoldNothing(t *testing.T) {
	cfg := Default()
	synctest.Test(t, func(t *testing.T) {
		e := &Edge{cfg: cfg, inFlight: httpapi.NewBudget(cfg.Edge.MaxInFlightBytes)}
		var ends []*io.PipeWriter
		for range 1000 {
			body, end := io.Pipe()
			ends = append(ends, end)
			r := httptest.NewRequest(http.MethodPost, "/v1/events", body)
			r.ContentLength = cfg.Edge.MaxBodyBytes
			go func() {
				hold := e.inFlight.Hold()
				defer hold.Release()
				if _, err := e.read(httptest.NewRecorder(), r, hold); err == nil {
					t.Error("a body that never came was read")
				}
			}()
		}
		synctest.Wait()
		if held := e.inFlight.Used(); held > cfg.Edge.MaxInFlightBytes/10 {
			t.Errorf("%d bytes are held for bodies of which nothing has come", held)
		}
		for _, end := range ends {
			end.CloseWithError(os.ErrDeadlineExceeded)
		}
		synctest.Wait()
		if held := e.inFlight.Used(); held != 0 {
			t.Errorf("%d bytes are held afterwards", held)
		}
	})
}

// A chunked body announces no length: the bound must hold all the same.
func TestUnannouncedLength(t *testing.T) {
	cfg := Default()
	cfg.Edge.MaxBodyBytes = 10_000
	_, e := newEdge(t, cfg)
	r := httptest.NewRequest(http.MethodPost, "/v1/events", io.LimitReader(zeros{}, 1<<40))
	r.ContentLength = -1
	w := httptest.NewRecorder()
	e.Handler().ServeHTTP(w, r)
	if w.Code != 413 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return copy(p, bytes.Repeat([]byte(" "), len(p))), nil }

// R4: an edge whose events Kafka does not take is not ready, and is again without an event that shows it.
func TestNoAcknowledgementIs503(t *testing.T) {
	cfg := Default()
	cfg.Edge.AckTimeout = 300 * time.Millisecond
	b, e := newEdge(t, cfg)
	health := telemetry.NewReadiness().Gate("edge")
	health.Healthy()
	e.Reports(health)
	h := b.Cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition, Count: -1})
	body := protobufBody(t, 5)
	if w := post(e, "application/x-protobuf", "", body); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if health.Ready() {
		t.Error("ready while events are answered with 503")
	}
	h.Remove()
	if e.askKafka(t.Context()); !health.Ready() {
		t.Error("not ready when Kafka answers again")
	}
	e.cfg.Edge.AckTimeout = 20 * time.Second
	if w := post(e, "application/x-protobuf", "", body); w.Code != 200 {
		t.Fatalf("after the broker came back: %d %s", w.Code, w.Body)
	}
}

func TestUserIsHashedWithTheSalt(t *testing.T) {
	a, b := decoder{salt: []byte("a")}, decoder{salt: []byte("b")}
	x, p := a.user([]byte(`"alice"`))
	y, q := b.user([]byte(`"alice"`))
	if p != nil || q != nil || x == y || x == 0 {
		t.Error("the salt does not matter", x, y, p, q)
	}
	if n, p := a.user([]byte("18446744073709551615")); p != nil || n != 1<<64-1 {
		t.Error("a number is taken as it is", n, p)
	}
	if _, p := a.user([]byte("1.5")); p == nil {
		t.Error("a fraction is no user")
	}
}

func FuzzRaw(f *testing.F) {
	f.Add(rawValue(f, testImpression(1_700_000_000_000, 1)))
	f.Add(rawValue(f, testClick(1_700_000_000_000, 1, 1_700_000_000_001)))
	f.Add(rawValue(f, &eventpb.Punctuation{LowWatermarkMs: 5}))
	f.Add([]byte(`{"type":"click","impression_id":"018bcfe5-6800-7000-8000-000000000001","time_ms":1700000000000}`))
	d := decoder{maxBytes: 16 << 10}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, p := d.raw(schemas.TopicRawClicks, b)
		if p != nil {
			return
		}
		// What was accepted is accepted again, as it is now, and unchanged: routing is idempotent.
		again, p := checkMessage(e.kind, e.value)
		if p != nil {
			t.Fatalf("accepted, then refused: %v", p)
		}
		if !bytes.Equal(again.value, e.value) || again.timeMS != e.timeMS || !bytes.Equal(again.id, e.id) {
			t.Fatalf("changed when read again: %v %v", e, again)
		}
		if e.kind != watermark {
			if _, err := schemas.ImpressionIDFromBytes(e.id); err != nil {
				t.Fatalf("routed without a key: %v", err)
			}
		}
	})
}

func FuzzBody(f *testing.F) {
	f.Add("application/json", []byte(`[{"type":"watermark","time_ms":5}]`))
	f.Add("application/x-ndjson", []byte("{\n{}\n"))
	f.Add("application/x-protobuf", protobufBody(f, 2))
	e := &Edge{cfg: Default(), decoder: decoder{maxBytes: 16 << 10}}
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		b, err := e.parse(contentType, body)
		if err != nil {
			return
		}
		if b.accepted()+b.rejectedTotal != b.index || b.index == 0 {
			t.Fatalf("%d accepted + %d rejected of %s events", b.accepted(), b.rejectedTotal, strconv.Itoa(b.index))
		}
	})
}

func BenchmarkEdge(b *testing.B) {
	_, e := newEdge(b, Default())
	body := protobufBody(b, 1000)
	b.SetBytes(int64(len(body)))
	cpu := cpuSeconds(b)
	for b.Loop() {
		if w := post(e, "application/x-protobuf", "", body); w.Code != 200 {
			b.Fatal(w.Body)
		}
	}
	b.ReportMetric(1100*float64(b.N)/(cpuSeconds(b)-cpu), "events/cpu-s")
}
