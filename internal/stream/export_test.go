package stream

import (
	"context"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
)

// FlushForTest waits until everything produced is on the log.
func (t *Tx) FlushForTest(ctx context.Context) error { return t.cl.Flush(ctx) }

// DeleteRecordsForTest deletes the records before an offset, as retention does.
func DeleteRecordsForTest(t *testing.T, c Config, topic string, partition int32, before int64) {
	t.Helper()
	err := admin(t.Context(), c, func(ctx context.Context, adm *kadm.Client) error {
		var o kadm.Offsets
		o.AddOffset(topic, partition, before, -1)
		_, err := adm.DeleteRecords(ctx, o)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
