package creativelog

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

func open(t *testing.T, b *streamtest.Broker) *Log {
	t.Helper()
	l, err := Open(t.Context(), b.Config, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func creative(id, product string, at int64) schemas.Creative {
	return schemas.Creative{ID: id, Product: product, Prior: 0.5, Created: time.Unix(at, 0).UTC()}
}

func ids(cs []schemas.Creative) []string {
	var out []string
	for _, c := range cs {
		out = append(out, c.ID)
	}
	return out
}

func TestPublishReadAndReopen(t *testing.T) {
	b := streamtest.Start(t, 2)
	streamtest.Produce(t, b.Config, &stream.Record{Topic: schemas.TopicCreatives, Key: []byte("bad"), Value: []byte("{")})
	l := open(t, b)
	changed := l.Changed()
	if err := l.Publish(t.Context(), creative("c-2", "p", 2), creative("c-1", "p", 1), creative("c-3", "q", 3)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("no change was announced")
	}
	blocked := creative("c-2", "p", 2)
	blocked.Blocked = "ugly"
	if err := l.Publish(t.Context(), blocked); err != nil {
		t.Fatal(err)
	}
	streamtest.Produce(t, b.Config, &stream.Record{Topic: schemas.TopicCreatives, Key: []byte("c-3")})
	if err := l.replica.WaitFor(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]*Log{"live": l, "reopened": open(t, b)} {
		if diff := cmp.Diff([]string{"c-1", "c-2"}, ids(l.OfProduct("p"))); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if diff := cmp.Diff([]string{"c-1", "c-2"}, ids(l.All())); diff != "" {
			t.Errorf("%s: the deleted creative is there: %s", name, diff)
		}
		if c, ok := l.Get("c-2"); !ok || c.Blocked != "ugly" {
			t.Errorf("%s: the last record of a key wins, got %+v", name, c)
		}
	}
}

func TestPublishRefusesNamelessCreatives(t *testing.T) {
	l := open(t, streamtest.Start(t, 1))
	if err := l.Publish(t.Context(), schemas.Creative{ID: "c-1"}); err == nil {
		t.Error("a creative without a product was published")
	}
}

// The last record may be gone, by deletion or compaction: the log opens all the same.
func TestOpensWhereTheLastRecordIsGone(t *testing.T) {
	b := streamtest.Start(t, 1)
	l := open(t, b)
	if err := l.Publish(t.Context(), creative("c-1", "p", 1), creative("c-2", "p", 2)); err != nil {
		t.Fatal(err)
	}
	streamtest.DeleteRecords(t, b.Config, schemas.TopicCreatives, 0, 2)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	again, err := Open(ctx, b.Config, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Len() != 0 || again.Err() != nil {
		t.Errorf("%d creatives, %v", again.Len(), again.Err())
	}
}
