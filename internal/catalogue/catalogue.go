// Package catalogue holds the products that ads are made for: an RGBA cut-out, a title and a category
// path each. It ships 176 of them and reads any folder of the same form.
package catalogue

import (
	"bufio"
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/draw"
	_ "image/png" // cut-outs are PNG ...
	"io/fs"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync"

	_ "golang.org/x/image/webp" // ... or WebP
	"golang.org/x/sync/errgroup"

	"ctrloop/schemas"
)

//go:embed data
var embedded embed.FS

// Bounds on what Load accepts.
const (
	// MaxImagePixels bounds a cut-out's canvas: 16 Mpx is 64 MiB decoded.
	MaxImagePixels = 16 << 20
	// MaxLineBytes bounds a line of products.jsonl.
	MaxLineBytes = 1 << 20
	// HoldoutFraction of the products is never seen by any training, see schemas.Holdout.
	HoldoutFraction = 0.2
)

// Product is one thing to advertise.
type Product struct {
	ID         string
	Title      string
	Category   string       // "department/category"
	Department string       // the part before the slash
	Cutout     *image.NRGBA // cropped to its alpha box
	Mean       RGB          // alpha-weighted mean colour
}

// Colour names the product's mean colour, such as "dark blue".
func (p *Product) Colour() string { return ColourName(p.Mean) }

// Caption is the product in words, as the models read it: "<title>, <colour>. <category>".
func (p *Product) Caption() string { return p.Title + ", " + p.Colour() + ". " + p.Category }

// Base is the id without a hue suffix.
func (p *Product) Base() string { b, _, _ := strings.Cut(p.ID, "~"); return b }

// Holdout says whether the product (and with it all of its hue variants) is kept from training.
func (p *Product) Holdout() bool { return schemas.Holdout(p.Base(), HoldoutFraction) }

// Catalogue is a fixed list of products. It is safe for concurrent use.
type Catalogue struct {
	products []*Product
	byID     map[string]*Product

	mu       sync.Mutex
	variants map[string]*Product // made on demand, bounded by products x 100 hues
}

// Embedded is the catalogue that ships with the program.
var Embedded = sync.OnceValue(func() *Catalogue {
	sub, err := fs.Sub(embedded, "data")
	if err != nil {
		panic(err)
	}
	c, err := LoadFS(sub)
	if err != nil {
		panic("catalogue: the embedded products are broken: " + err.Error())
	}
	return c
})

// Open is Load(dir), or the embedded catalogue for an empty dir.
func Open(dir string) (*Catalogue, error) {
	if dir == "" {
		return Embedded(), nil
	}
	return Load(dir)
}

// Load reads a folder with products.jsonl (one JSON object a line: id, title, category, image) and the
// images that it names.
func Load(dir string) (*Catalogue, error) {
	c, err := LoadFS(os.DirFS(dir))
	if err != nil {
		return nil, fmt.Errorf("catalogue %s: %w", dir, err)
	}
	return c, nil
}

type row struct{ ID, Title, Category, Image string }

// LoadFS is Load over a file system.
func LoadFS(fsys fs.FS) (*Catalogue, error) {
	rows, err := readRows(fsys)
	if err != nil {
		return nil, err
	}
	c := &Catalogue{products: make([]*Product, len(rows)), byID: make(map[string]*Product, len(rows)), variants: map[string]*Product{}}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, r := range rows {
		g.Go(func() error {
			im, err := readCutout(fsys, r.Image)
			if err != nil {
				return fmt.Errorf("product %s: %w", r.ID, err)
			}
			c.products[i] = newProduct(r.ID, r.Title, r.Category, im)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, p := range c.products {
		c.byID[p.ID] = p
	}
	return c, nil
}

func newProduct(id, title, category string, im *image.NRGBA) *Product {
	dept, _, _ := strings.Cut(category, "/")
	return &Product{ID: id, Title: title, Category: category, Department: dept, Cutout: im, Mean: meanColour(im)}
}

func readRows(fsys fs.FS) ([]row, error) {
	raw, err := fs.ReadFile(fsys, "products.jsonl")
	if err != nil {
		return nil, fmt.Errorf("%w (a catalogue folder needs products.jsonl: one object a line with id, title, category, image)", err)
	}
	var rows []row
	seen := map[string]int{}
	sc := bufio.NewScanner(bytes.NewReader(raw))
	sc.Buffer(nil, MaxLineBytes)
	for n := 1; sc.Scan(); n++ {
		line := bytes.TrimSpace(sc.Bytes())
		if len(line) == 0 {
			continue
		}
		var r row
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("products.jsonl line %d: %w", n, err)
		}
		for _, f := range [...]struct{ name, value string }{{"id", r.ID}, {"title", r.Title}, {"category", r.Category}, {"image", r.Image}} {
			if f.value == "" {
				return nil, fmt.Errorf("products.jsonl line %d: field %q is missing or empty", n, f.name)
			}
		}
		if strings.ContainsAny(r.ID, "~ \t") {
			return nil, fmt.Errorf("products.jsonl line %d: id %q must not contain '~' (hue variants use it) or spaces", n, r.ID)
		}
		if !strings.Contains(r.Category, "/") {
			return nil, fmt.Errorf("products.jsonl line %d: category %q is not a path \"department/category\"", n, r.Category)
		}
		if first, dup := seen[r.ID]; dup {
			return nil, fmt.Errorf("products.jsonl line %d: id %q was used in line %d already", n, r.ID, first)
		}
		seen[r.ID] = n
		rows = append(rows, r)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("products.jsonl: %w", err)
	}
	if len(rows) == 0 {
		return nil, errors.New("products.jsonl holds no products")
	}
	return rows, nil
}

func readCutout(fsys fs.FS, name string) (*image.NRGBA, error) {
	raw, err := fs.ReadFile(fsys, path.Clean(name))
	if err != nil {
		return nil, fmt.Errorf("image: %w (the path is relative to products.jsonl and may not leave its folder)", err)
	}
	cfg, format, err := image.DecodeConfig(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("image %s is unreadable: %w (want PNG or WebP)", name, err)
	}
	if cfg.Width*cfg.Height > MaxImagePixels {
		return nil, fmt.Errorf("image %s is %dx%d pixels, more than %d Mpx: scale it down", name, cfg.Width, cfg.Height, MaxImagePixels>>20)
	}
	im, _, err := image.Decode(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("image %s is unreadable: %w", name, err)
	}
	return cropToAlpha(im, name, format)
}

// cropToAlpha converts to 8-bit straight alpha and cuts off the empty margins.
func cropToAlpha(im image.Image, name, format string) (*image.NRGBA, error) {
	b := im.Bounds()
	full, ok := im.(*image.NRGBA)
	if !ok {
		full = image.NewNRGBA(image.Rect(0, 0, b.Dx(), b.Dy()))
		draw.Draw(full, full.Rect, im, b.Min, draw.Src)
		b = full.Rect
	}
	box, clear := image.Rectangle{}, false
	for y := b.Min.Y; y < b.Max.Y; y++ {
		row := full.Pix[full.PixOffset(b.Min.X, y):][:4*b.Dx()]
		first, last := -1, -1
		for x := range b.Dx() {
			a := row[4*x+3]
			clear = clear || a < 255
			if a > 0 {
				last = x
				if first < 0 {
					first = x
				}
			}
		}
		if first >= 0 {
			box = box.Union(image.Rect(b.Min.X+first, y, b.Min.X+last+1, y+1))
		}
	}
	if box.Empty() {
		return nil, fmt.Errorf("image %s is fully transparent", name)
	}
	if !clear {
		return nil, fmt.Errorf("image %s (%s) has no alpha: a product must be cut out of its background", name, format)
	}
	out := image.NewNRGBA(image.Rect(0, 0, box.Dx(), box.Dy()))
	for y := range box.Dy() {
		o := full.PixOffset(box.Min.X, box.Min.Y+y)
		copy(out.Pix[y*out.Stride:(y+1)*out.Stride], full.Pix[o:o+4*box.Dx()])
	}
	return out, nil
}

// Products lists all products in file order, without hue variants. The slice must not be changed.
func (c *Catalogue) Products() []*Product { return c.products }

// Get finds a product by id. An id with the suffix "~hNN" is the product with all hues turned by NN
// hundredths of the colour circle (01..99); variants are training augmentation, made when first asked for.
func (c *Catalogue) Get(id string) (*Product, bool) {
	if p, ok := c.byID[id]; ok {
		return p, true
	}
	base, suffix, ok := strings.Cut(id, "~h")
	p, known := c.byID[base]
	if !ok || !known || len(suffix) != 2 {
		return nil, false
	}
	nn, err := strconv.Atoi(suffix)
	if err != nil || nn < 1 || nn > 99 {
		return nil, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := c.variants[id]; ok {
		return v, true
	}
	v := newProduct(id, p.Title, p.Category, rotateHue(p.Cutout, float64(nn)/100))
	c.variants[id] = v
	return v, true
}

// Variants returns n hue variants of a product, evenly spaced around the colour circle, the product
// itself not included.
func (c *Catalogue) Variants(p *Product, n int) []*Product {
	out := make([]*Product, 0, n)
	for k := 1; k <= n && k < 100; k++ {
		if v, ok := c.Get(fmt.Sprintf("%s~h%02d", p.ID, k*100/(n+1))); ok {
			out = append(out, v)
		}
	}
	return out
}

// Entry is a product as data, for consumers in other languages: one line of `ctrloop render catalogue`.
type Entry struct {
	ID         string   `json:"id"`
	Title      string   `json:"title"`
	Category   string   `json:"category"`
	Department string   `json:"department"`
	Colour     string   `json:"colour"`
	Caption    string   `json:"caption"`
	Holdout    bool     `json:"holdout"`
	Fits       []string `json:"fits"`
	Harmonious []string `json:"harmonious"`
}

// Entry describes the product.
func (p *Product) Entry() Entry {
	e := Entry{
		ID:         p.ID,
		Title:      p.Title,
		Category:   p.Category,
		Department: p.Department,
		Colour:     p.Colour(),
		Caption:    p.Caption(),
		Holdout:    p.Holdout(),
	}
	for _, s := range p.Fits() {
		e.Fits = append(e.Fits, s.String())
	}
	for _, q := range p.Harmonious() {
		e.Harmonious = append(e.Harmonious, q.String())
	}
	return e
}
