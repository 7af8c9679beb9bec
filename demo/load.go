package demo

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"ctrloop/internal/imaging"
	"ctrloop/serving/rollout"
)

// chatEvery is the pace of the load on the gateway while versions change. The embedded server shares two
// cores with everything else; the point is that requests are in flight at every moment, not their number.
const chatEvery = 50 * time.Millisecond

// chatLoad asks the gateway for descriptions until ctx ends, as a site with on-demand generation would. What
// failed and what was answered by another version than was admitted is counted by the gateway itself.
func (d *demo) chatLoad(ctx context.Context) error {
	products := d.cat.Products()
	tick := time.NewTicker(chatEvery)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		p := products[i%len(products)]
		var png bytes.Buffer
		if err := imaging.EncodePNG(&png, imaging.Plain(p, 64)); err != nil {
			return err
		}
		body, err := json.Marshal(map[string]any{
			"model": rollout.Logical, "max_tokens": 32, "temperature": 1.0, "seed": i, "user": fmt.Sprint(i),
			"messages": []any{map[string]any{"role": "user", "content": []any{
				map[string]any{
					"type":      "image_url",
					"image_url": map[string]string{"url": "data:image/png;base64," + base64.StdEncoding.EncodeToString(png.Bytes())},
				},
				map[string]any{"type": "text", "text": p.Caption() + ". write a background prompt"},
			}}},
		})
		if err != nil {
			return err
		}
		if err := d.chat(ctx, body); err != nil {
			return err
		}
	}
}

func (d *demo) chat(ctx context.Context, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.shop.api+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := d.shop.client.Do(req)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	if ctx.Err() != nil {
		return nil
	}
	return err
}
