package creatives

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"image"
	"image/color"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
	"ctrloop/serving/backend"
)

// Prompting is how the base model wants to be asked: prompting.json in its folder.
type Prompting struct {
	Instructions []string `json:"instructions"`
	ViewPx       int      `json:"view_px"`
	Temperature  float64  `json:"temperature"`
	MinP         float64  `json:"min_p"`
	MaxTokens    int      `json:"max_tokens"`
}

// ReadPrompting reads prompting.json of a model folder.
func ReadPrompting(dir string) (Prompting, error) {
	var p Prompting
	raw, err := os.ReadFile(filepath.Join(dir, "prompting.json"))
	if err == nil {
		err = json.Unmarshal(raw, &p)
	}
	if err != nil {
		return p, fmt.Errorf("base model's prompting.json: %w", err)
	}
	if len(p.Instructions) == 0 || p.ViewPx < 8 || p.ViewPx > 1024 || p.MaxTokens < 1 {
		return p, fmt.Errorf("base model's prompting.json: want instructions, view_px in 8..1024 and max_tokens")
	}
	return p, nil
}

// prompter builds requests; it keeps the plain views, which are the same every time.
type prompter struct {
	Prompting
	mu    sync.Mutex
	views map[string]string // product -> data URL; one per product of the catalogue
}

func (p *prompter) request(model string, prod *catalogue.Product, n int, seed uint64) (backend.ChatRequest, error) {
	url, err := p.view(prod)
	if err != nil {
		return backend.ChatRequest{}, err
	}
	instruction := p.Instructions[seed%uint64(len(p.Instructions))]
	s := int64(seed >> 1) // OpenAI's seed is signed
	return backend.ChatRequest{
		Model: model, N: n, Temperature: p.Temperature, MinP: p.MinP, MaxTokens: p.MaxTokens, Seed: &s,
		Messages: []backend.Message{{Role: "user", Content: []backend.Part{
			{Type: "image_url", ImageURL: &backend.ImageURL{URL: url}},
			{Type: "text", Text: escape(prod.Caption()) + ". " + instruction},
		}}},
	}, nil
}

// markup are texts that a tokenizer or a chat template takes for control: <image>, <|im_end|>, [/INST], ASSISTANT:.
var markup = regexp.MustCompile(`<[^<>\s]+>|\[/?INST\]|\b(?:USER|ASSISTANT|SYSTEM):`)

// escape takes such texts apart with a space, as the trainer does (ctrloop_trainer/prompt/markup.py). A caption is data, and
// vLLM tokenises it as markup: one merchant's title would end the user's turn, or ask for a second picture.
func escape(text string) string {
	for markup.MatchString(text) { // taking one apart may leave another: <<a>b>
		text = markup.ReplaceAllStringFunc(text, func(m string) string { return m[:1] + " " + m[1:] })
	}
	return text
}

// view is the product on plain ground at the model's size, scaled in the same way as training pictures are.
func (p *prompter) view(prod *catalogue.Product) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v, ok := p.views[prod.ID]; ok {
		return v, nil
	}
	rgb := imaging.View(imaging.Plain(prod, 2*p.ViewPx), p.ViewPx)
	im := image.NewNRGBA(image.Rect(0, 0, p.ViewPx, p.ViewPx))
	for i := range p.ViewPx * p.ViewPx {
		im.SetNRGBA(i%p.ViewPx, i/p.ViewPx, color.NRGBA{rgb[3*i], rgb[3*i+1], rgb[3*i+2], 255})
	}
	var b bytes.Buffer
	if err := imaging.EncodePNG(&b, im); err != nil {
		return "", err
	}
	v := "data:image/png;base64," + base64.StdEncoding.EncodeToString(b.Bytes())
	p.views[prod.ID] = v
	return v, nil
}

// mix derives a seed from its parts, the same in every process.
func mix(seed uint64, parts ...string) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d", seed)
	for _, p := range parts {
		fmt.Fprintf(h, "|%d:%s", len(p), p)
	}
	x := h.Sum64() // FNV's low bits are weak: finish as SplitMix64 does
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
