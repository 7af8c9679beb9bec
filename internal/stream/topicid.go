package stream

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
)

// TopicIDs returns the broker's id of each topic, in hex. A topic that was deleted and made again has
// another id: an offset means something only together with it.
func TopicIDs(ctx context.Context, c Config, topics ...string) (map[string]string, error) {
	out := map[string]string{}
	err := admin(ctx, c, func(ctx context.Context, adm *kadm.Client) error {
		details, err := adm.ListTopics(ctx, topics...)
		if err != nil {
			return fmt.Errorf("look at topics %v: %w", topics, err)
		}
		for _, t := range topics {
			d, ok := details[t]
			if !ok || d.Err != nil {
				return fmt.Errorf("look at topic %s: found %v: %w", t, ok, d.Err)
			}
			out[t] = hex.EncodeToString(d.ID[:])
		}
		return nil
	})
	return out, err
}
