package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ctrloop/app"
	"ctrloop/app/trace"
	"ctrloop/internal/broker/brokertest"
	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"

	"google.golang.org/protobuf/proto"
)

// topicsAtRest makes the folder of an instance that has an embedded broker and no warehouse, with one impression.
func topicsAtRest(t *testing.T) (dir string, id schemas.ImpressionID) {
	t.Helper()
	dir = t.TempDir()
	e := brokertest.Start(t, filepath.Join(dir, app.KafkaFolder))
	defer e.Stop()
	if err := stream.EnsureTopics(t.Context(), e.Config(), schemas.Topics(), 2, -1); err != nil {
		t.Fatal(err)
	}
	id = schemas.NewImpressionID(time.UnixMilli(1_790_000_000_000), [10]byte{1})
	value, err := proto.Marshal(&eventpb.Impression{Id: id[:], Product: "lamp", Schema: 1})
	if err != nil {
		t.Fatal(err)
	}
	streamtest.Produce(t, e.Config(), &stream.Record{Topic: schemas.TopicImpressions, Key: id[:], Timestamp: id.Time(), Value: value})
	return dir, id
}

func TestTraceAtRest(t *testing.T) {
	dir, id := topicsAtRest(t)
	code, stdout, stderr := cli(t, "trace", "--dir", dir, id.String())
	for _, want := range []string{id.String(), "waiting: the joiner", "imp.v1/", "product=lamp", "not asked"} {
		if code != exitOK || !strings.Contains(stdout, want) {
			t.Errorf("exit %d, lacks %q:\n%s%s", code, want, stdout, stderr)
		}
	}
	code, stdout, stderr = cli(t, "trace", "--dir", dir, "--json", id.String())
	var rep trace.Report
	if err := json.Unmarshal([]byte(stdout), &rep); code != exitOK || err != nil || rep.State != trace.Waiting || len(rep.Steps) != 1 ||
		rep.Warehouse != nil {
		t.Errorf("exit %d, %v: %s%s", code, err, stdout, stderr)
	}
}

func TestTraceSaysWhatIsWrong(t *testing.T) {
	dir, id := topicsAtRest(t)
	unknown := schemas.NewImpressionID(id.Time(), [10]byte{2})
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--dir", dir, "no-id"}, exitUsage, "not an impression id"},
		{[]string{"--dir", dir, "6ba7b810-9dad-11d1-80b4-00c04fd430c8"}, exitUsage, "UUID version 1"},
		{[]string{"--dir", dir, "--slack", "-1s", id.String()}, exitUsage, "--slack"},
		{[]string{"--dir", dir, unknown.String()}, exitFailed, "no such impression"},
		{[]string{"--dir", t.TempDir(), id.String()}, exitFailed, "there are no topics"},
	} {
		code, _, stderr := cli(t, append([]string{"trace"}, test.args...)...)
		if code != test.code || !strings.Contains(stderr, test.want) {
			t.Errorf("%v: exit %d, want %d with %q: %s", test.args, code, test.code, test.want, stderr)
		}
	}
}
