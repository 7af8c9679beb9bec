package stream_test

import (
	"testing"

	"ctrloop/internal/stream"
	"ctrloop/schemas"
)

// The sink's insert tokens name the topic's id: it must outlive a restart of the embedded broker.
func TestTopicIDsSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	ids := func() string {
		e, err := stream.StartEmbedded(stream.EmbeddedConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		c := stream.Default()
		c.Brokers = e.Brokers()
		if err := stream.EnsureTopics(t.Context(), c, schemas.Topics(), 1, -1); err != nil {
			t.Fatal(err)
		}
		m, err := stream.TopicIDs(t.Context(), c, schemas.TopicLabels, schemas.TopicAudit)
		if err != nil {
			t.Fatal(err)
		}
		if m[schemas.TopicLabels] == m[schemas.TopicAudit] {
			t.Errorf("two topics with one id %s", m[schemas.TopicLabels])
		}
		return m[schemas.TopicLabels]
	}
	if first, second := ids(), ids(); first != second || len(first) != 32 {
		t.Errorf("id %q before and %q after a restart", first, second)
	}
}
