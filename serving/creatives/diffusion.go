package creatives

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
)

// DiffusionConfig says how an image server is asked.
type DiffusionConfig struct {
	// Address of the server, http://host:port.
	Address string
	// Timeout of one picture. It waits for the batches before it.
	Timeout time.Duration
	// Patience with a server that is full or not there (yet), per picture.
	Patience time.Duration
}

// DefaultDiffusionConfig allows for Stable Diffusion at its full size on a CPU, and for a server that starts on a
// busy machine.
func DefaultDiffusionConfig(address string) DiffusionConfig {
	return DiffusionConfig{Address: address, Timeout: 10 * time.Minute, Patience: 5 * time.Minute}
}

// Diffusion has backgrounds painted by an image server that speaks OpenAI's image edits call: the project's own
// (python -m ctrloop_trainer.diffusion.serve), which takes its shipped weights and Stable Diffusion 1.5 alike.
type Diffusion struct {
	cfg    DiffusionConfig
	url    string
	client *http.Client
}

var _ Drawer = (*Diffusion)(nil)

// NewDiffusion checks the configuration; the server need not be there yet.
func NewDiffusion(cfg DiffusionConfig) (*Diffusion, error) {
	u, err := url.Parse(cfg.Address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("image server: address %q: want http://host:port", cfg.Address)
	}
	if cfg.Timeout <= 0 || cfg.Patience <= 0 {
		return nil, fmt.Errorf("image server: timeout %v and patience %v must be positive", cfg.Timeout, cfg.Patience)
	}
	// A connection per picture in flight, kept: the default would close all but two after each.
	transport := &http.Transport{MaxIdleConnsPerHost: 256, IdleConnTimeout: 30 * time.Second}
	return &Diffusion{cfg: cfg, url: u.JoinPath("v1/images/edits").String(), client: &http.Client{Transport: transport}}, nil
}

// Name is "diffusion".
func (*Diffusion) Name() string { return "diffusion" }

// Close drops idle connections.
func (d *Diffusion) Close() { d.client.CloseIdleConnections() }

// Bounds on an answer: a PNG of the largest canvas in base64 is below 32 MiB, an error a line.
const (
	maxAnswerBytes = 64 << 20
	maxErrorBytes  = 4 << 10
)

// errTryAgain marks an answer, or the lack of one, that time may mend.
var errTryAgain = errors.New("try again")

// Draw sends the product on a transparent canvas and gets it back with a background. What the product covers fully is
// copied from the cut-out again, whatever came back.
func (d *Diffusion) Draw(ctx context.Context, p *catalogue.Product, description string, seed uint64, px int) (*image.NRGBA, bool, error) {
	if _, _, ok := imaging.Parse(description); !ok {
		return imaging.Plain(p, px), false, nil
	}
	kind, form, err := editForm(imaging.Cutout(p, px), description, seed)
	if err != nil {
		return nil, false, err
	}
	deadline := time.Now().Add(d.cfg.Patience)
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		im, err := d.ask(ctx, kind, form, px)
		if err == nil {
			imaging.PasteProduct(im, p)
			return im, true, nil
		}
		if ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
		if !errors.Is(err, errTryAgain) || time.Now().After(deadline) {
			return nil, false, fmt.Errorf(
				"image server %s: %w; is it up (GET /health)? `python -m ctrloop_trainer.diffusion.serve` starts one, images.backend: scene "+
					"does without",
				d.cfg.Address,
				err,
			)
		}
		select {
		case <-ctx.Done():
			return nil, false, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// editForm is the body of an image edit and its content type.
func editForm(canvas image.Image, prompt string, seed uint64) (kind string, form []byte, err error) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	part, err := w.CreateFormFile("image", "canvas.png")
	if err != nil {
		return "", nil, fmt.Errorf("image edit: %w", err)
	}
	if err := imaging.EncodePNG(part, canvas); err != nil {
		return "", nil, fmt.Errorf("image edit: encode the canvas: %w", err)
	}
	for _, f := range [][2]string{{"prompt", prompt}, {"seed", strconv.FormatUint(seed, 10)}, {"response_format", "b64_json"}} {
		if err := w.WriteField(f[0], f[1]); err != nil {
			return "", nil, fmt.Errorf("image edit: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return "", nil, fmt.Errorf("image edit: %w", err)
	}
	return w.FormDataContentType(), b.Bytes(), nil
}

func (d *Diffusion) ask(ctx context.Context, kind string, form []byte, px int) (*image.NRGBA, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url, bytes.NewReader(form))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", kind)
	resp, err := d.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("no picture within %v: %w", d.cfg.Timeout, ctx.Err())
		}
		return nil, fmt.Errorf("%w: %w", errTryAgain, err) // not there, or gone in the middle: drawing twice does no harm
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
		err := fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(why)))
		switch resp.StatusCode {
		case http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusGatewayTimeout:
			return nil, fmt.Errorf("%w: %w", errTryAgain, err)
		}
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return nil, fmt.Errorf("%w: the answer broke off: %w", errTryAgain, err)
	}
	return readEdit(raw, px)
}

// readEdit decodes the first picture of an answer.
func readEdit(raw []byte, px int) (*image.NRGBA, error) {
	var answer struct {
		Data []struct {
			B64 string `json:"b64_json"`
		} `json:"data"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, fmt.Errorf("the answer is not OpenAI's form: %w", err)
	}
	if len(answer.Data) != 1 || answer.Data[0].B64 == "" {
		return nil, fmt.Errorf("the answer has %d pictures in b64_json, want one", len(answer.Data))
	}
	file, err := base64.StdEncoding.DecodeString(answer.Data[0].B64)
	if err != nil {
		return nil, fmt.Errorf("the answer's picture is not base64: %w", err)
	}
	im, err := imaging.DecodePNG(file, px)
	if err != nil {
		return nil, fmt.Errorf("the answer's picture is not a PNG: %w", err)
	}
	if b := im.Bounds(); b.Dx() != px || b.Dy() != px {
		return nil, fmt.Errorf("asked for %d pixels a side, got %dx%d", px, b.Dx(), b.Dy())
	}
	return toNRGBA(im), nil
}
