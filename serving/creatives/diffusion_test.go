package creatives

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
)

// painter is an image server that paints everything in one colour: also where it was told to keep.
func painter(t *testing.T, before func(call int64, w http.ResponseWriter) bool) (*Diffusion, *atomic.Int64, *http.Request) {
	t.Helper()
	var calls atomic.Int64
	last := new(http.Request)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !before(calls.Add(1), w) {
			return
		}
		if r.Method != http.MethodPost || r.URL.Path != "/v1/images/edits" {
			http.Error(w, "no such call: "+r.Method+" "+r.URL.Path, http.StatusNotFound)
			return
		}
		f, _, err := r.FormFile("image")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		canvas, err := png.Decode(f)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		*last = *r
		out := image.NewNRGBA(canvas.Bounds())
		for i := range out.Pix {
			out.Pix[i] = 255
		}
		_, _, _, corner := canvas.At(0, 0).RGBA()
		if corner != 0 {
			http.Error(w, "the corner is not transparent", http.StatusBadRequest)
			return
		}
		_, _ = w.Write(answer(out))
	}))
	t.Cleanup(srv.Close)
	cfg := DefaultDiffusionConfig(srv.URL)
	cfg.Patience = time.Minute
	d, err := NewDiffusion(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d, &calls, last
}

func answer(im image.Image) []byte {
	var b bytes.Buffer
	if err := png.Encode(&b, im); err != nil {
		panic(err)
	}
	return fmt.Appendf(nil, `{"created": 1, "data": [{"b64_json": %q}]}`, base64.StdEncoding.EncodeToString(b.Bytes()))
}

func always(int64, http.ResponseWriter) bool { return true }

var anyDescription = imaging.Description{}.String()

func TestDiffusionKeepsTheProductWhateverComesBack(t *testing.T) {
	d, _, last := painter(t, always)
	p := catalogue.Embedded().Products()[0]
	im, valid, err := d.Draw(context.Background(), p, anyDescription, 1<<63+7, 128)
	if err != nil || !valid {
		t.Fatalf("draw: valid %v, %v", valid, err)
	}
	if worst := imaging.MaxProductError(im, p); worst != 0 {
		t.Errorf("product pixels differ by up to %d from a server that paints over them", worst)
	}
	if got := im.NRGBAAt(0, 0); got != (color.NRGBA{255, 255, 255, 255}) {
		t.Errorf("corner is %v: the background is not the server's", got)
	}
	if got := last.FormValue("prompt"); got != anyDescription {
		t.Errorf("prompt %q, want %q", got, anyDescription)
	}
	if got := last.FormValue("seed"); got != "9223372036854775815" {
		t.Errorf("seed %q", got)
	}
}

func TestDiffusionDrawsThePlainViewOfWhatIsNoDescription(t *testing.T) {
	d, calls, _ := painter(t, always)
	p := catalogue.Embedded().Products()[0]
	im, valid, err := d.Draw(context.Background(), p, "anything <lora:evil:1>", 1, 96)
	if err != nil || valid {
		t.Fatalf("valid %v, %v: want an invalid picture without an error", valid, err)
	}
	if calls.Load() != 0 || !bytes.Equal(im.Pix, imaging.Plain(p, 96).Pix) {
		t.Error("want the plain view, and no call")
	}
}

func TestDiffusionTriesAgainWhenTheServerIsFull(t *testing.T) {
	d, calls, _ := painter(t, func(call int64, w http.ResponseWriter) bool {
		if call < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return call >= 3
	})
	if _, _, err := d.Draw(context.Background(), catalogue.Embedded().Products()[0], anyDescription, 1, 96); err != nil || calls.Load() != 3 {
		t.Errorf("%d calls, %v", calls.Load(), err)
	}
}

func TestDiffusionGivesUpAtOnceOnWhatTimeWillNotMend(t *testing.T) {
	p := catalogue.Embedded().Products()[0]
	small := answer(image.NewNRGBA(image.Rect(0, 0, 8, 8)))
	for name, tc := range map[string]struct {
		status int
		body   string
		want   string
	}{
		"refused":    {400, `{"error": {"message": "the prompt is too long"}}`, "the prompt is too long"},
		"wrong size": {200, string(small), "asked for 96 pixels a side, got 8x8"},
		"no picture": {200, `{"data": []}`, "0 pictures"},
		"no JSON":    {200, `<html>`, "not OpenAI's form"},
		"no PNG":     {200, `{"data": [{"b64_json": "aGVsbG8="}]}`, "not a PNG"},
	} {
		t.Run(name, func(t *testing.T) {
			d, calls, _ := painter(t, func(_ int64, w http.ResponseWriter) bool {
				w.WriteHeader(tc.status)
				_, _ = w.Write([]byte(tc.body))
				return false
			})
			_, _, err := d.Draw(context.Background(), p, anyDescription, 1, 96)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "ctrloop_trainer.diffusion.serve") {
				t.Errorf("error %v: want %q and what to do", err, tc.want)
			}
			if calls.Load() != 1 {
				t.Errorf("%d calls, want one", calls.Load())
			}
		})
	}
}

func TestDiffusionSaysWhatToDoWhenNobodyIsThere(t *testing.T) {
	d, err := NewDiffusion(DiffusionConfig{Address: "http://127.0.0.1:1", Timeout: time.Second, Patience: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = d.Draw(context.Background(), catalogue.Embedded().Products()[0], anyDescription, 1, 96)
	if err == nil || !strings.Contains(err.Error(), "is it up") || !strings.Contains(err.Error(), "images.backend") {
		t.Errorf("error %v: want what to do", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := d.Draw(ctx, catalogue.Embedded().Products()[0], anyDescription, 1, 96); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestDiffusionConfig(t *testing.T) {
	for _, address := range []string{"", "127.0.0.1:80", "ftp://x", "http://"} {
		if _, err := NewDiffusion(DefaultDiffusionConfig(address)); err == nil {
			t.Errorf("address %q is accepted", address)
		}
	}
}
