package dataset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/draw"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ctrloop/internal/columnar"
)

// Format is a form in which another program reads a data set.
type Format string

// Formats.
const (
	FormatParquet Format = "parquet" // pairs.parquet and creatives.parquet, as the Arrow tables
	FormatTRL     Format = "trl"     // TRL's conversational preference format: what was said of the product, better and worse
	FormatSwift   Format = "swift"   // ms-swift's, with the two pictures and the two descriptions
	FormatLLaVA   Format = "llava"   // LLaVA's conversations: which of two pictures side by side
)

// Formats lists all.
func Formats() []Format { return []Format{FormatParquet, FormatTRL, FormatSwift, FormatLLaVA} }

// Exported says what an export holds.
type Exported struct {
	Format Format         `json:"format"`
	Files  []string       `json:"files"`
	Rows   map[string]int `json:"rows"` // by split
	// Same are pairs left out because both creatives have the same description: there is nothing to prefer. Formats of pictures have them.
	Same int `json:"same_description"`
}

// What models are asked. The words are the exports' own: whoever trains with a template of another model may change them.
const (
	askDescription = "Describe a background for an advertising picture of this product: "
	askBetter      = "Two advertising pictures of the same product. Which one is clicked more often, left or right? "
)

// pictureFolder of an export, below it.
const pictureFolder = "images"

// Export writes a data set in another program's format into out, an empty or a new folder. A split is a file of its own.
func Export(dir, out string, f Format) (Exported, error) {
	e := Exported{Format: f, Rows: map[string]int{}}
	if !slices.Contains(Formats(), f) {
		return e, fmt.Errorf("export: no format %q", f)
	}
	s, err := Read(dir)
	if err != nil {
		return e, err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return e, fmt.Errorf("export: %w", err)
	}
	if there, err := os.ReadDir(out); err != nil || len(there) > 0 {
		return e, errors.Join(err, fmt.Errorf("export: the folder %s is not empty", out))
	}
	x := exporter{Set: s, dir: dir, out: out, Exported: &e, by: map[string]*CreativeRow{}}
	for i := range s.Creatives {
		x.by[s.Creatives[i].Creative] = &s.Creatives[i]
	}
	switch f {
	case FormatParquet:
		err = x.parquet()
	case FormatTRL:
		err = x.lines(x.trl)
	case FormatSwift:
		err = x.swiftLines()
	case FormatLLaVA:
		err = x.llava()
	}
	if err == nil {
		err = x.copyManifest()
	}
	slices.Sort(e.Files)
	return e, err
}

type exporter struct {
	Set
	*Exported
	dir, out string
	by       map[string]*CreativeRow
}

// sides are the better and the worse creative of a pair.
func (x exporter) sides(p PairRow) (better, worse *CreativeRow, err error) {
	ids := p.creatives()
	better, worse = x.by[ids[0]], x.by[ids[1]]
	if better == nil || worse == nil {
		return nil, nil, fmt.Errorf("export: pair %s names a creative that is not there: `ctrloop dataset verify` says more", p.PairID)
	}
	return better, worse, nil
}

func (x exporter) splits() map[string][]PairRow {
	out := map[string][]PairRow{}
	for _, p := range x.Pairs {
		out[p.Split] = append(out[p.Split], p)
	}
	return out
}

func (x exporter) write(name string, raw []byte) error {
	path := filepath.Join(x.out, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if filepath.Dir(name) == "." {
		x.Files = append(x.Files, name)
	}
	return nil
}

func (x exporter) copyManifest() error {
	raw, err := os.ReadFile(filepath.Join(x.dir, ManifestFile))
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return x.write(ManifestFile, raw)
}

func (x exporter) parquet() error {
	if err := columnar.WriteParquet(filepath.Join(x.out, "pairs.parquet"), x.Pairs); err != nil {
		return err
	}
	if err := columnar.WriteParquet(filepath.Join(x.out, "creatives.parquet"), x.Creatives); err != nil {
		return err
	}
	x.Files = append(x.Files, "pairs.parquet", "creatives.parquet")
	for _, p := range x.Pairs {
		x.Rows[p.Split]++
	}
	return nil
}

// message is a turn of a conversation.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// lines writes a file of JSON lines for each split. row is nil for a pair that has nothing to say in this format.
func (x exporter) lines(row func(p PairRow, better, worse *CreativeRow) any) error {
	for split, pairs := range x.splits() {
		var b bytes.Buffer
		lines := json.NewEncoder(&b)
		for _, p := range pairs {
			better, worse, err := x.sides(p)
			if err != nil {
				return err
			}
			v := row(p, better, worse)
			if v == nil {
				x.Same++
				continue
			}
			if err := lines.Encode(v); err != nil {
				return fmt.Errorf("export: pair %s: %w", p.PairID, err)
			}
			x.Rows[split]++
		}
		if err := x.write(split+".jsonl", b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

func (x exporter) trl(p PairRow, better, worse *CreativeRow) any {
	if better.Description == worse.Description {
		return nil
	}
	return struct {
		Prompt   []message `json:"prompt"`
		Chosen   []message `json:"chosen"`
		Rejected []message `json:"rejected"`
		Weight   float64   `json:"weight"`
		PairID   string    `json:"pair_id"`
	}{
		[]message{{"user", askDescription + better.Caption}}, []message{{"assistant", better.Description}},
		[]message{{"assistant", worse.Description}}, p.Weight, p.PairID,
	}
}

// swiftLines has pictures as files: a creative is in many pairs.
func (x exporter) swiftLines() error {
	for _, c := range x.Creatives {
		if err := x.write(picture(c.Creative), c.ImagePNG); err != nil {
			return err
		}
	}
	return x.lines(func(p PairRow, better, worse *CreativeRow) any {
		talk := func(c *CreativeRow) []message {
			return []message{{"user", "<image>" + askDescription + c.Caption}, {"assistant", c.Description}}
		}
		return struct {
			Messages         []message `json:"messages"`
			Images           []string  `json:"images"`
			RejectedMessages []message `json:"rejected_messages"`
			RejectedImages   []string  `json:"rejected_images"`
		}{talk(better), []string{picture(better.Creative)}, talk(worse), []string{picture(worse.Creative)}}
	})
}

// picture is the file of a creative. Its id may hold what a file's name may not.
func picture(id string) string {
	return filepath.ToSlash(filepath.Join(pictureFolder, strings.NewReplacer("/", "_", "\\", "_", "..", "__").Replace(id)+".png"))
}

func (x exporter) llava() error {
	type turn struct {
		From  string `json:"from"`
		Value string `json:"value"`
	}
	type entry struct {
		ID            string `json:"id"`
		Image         string `json:"image"`
		Conversations []turn `json:"conversations"`
	}
	for split, pairs := range x.splits() {
		entries := make([]entry, 0, len(pairs))
		for _, p := range pairs {
			if _, _, err := x.sides(p); err != nil {
				return err
			}
			raw, err := sideBySide(x.by[p.Left].ImagePNG, x.by[p.Right].ImagePNG)
			if err != nil {
				return fmt.Errorf("export: pair %s: %w", p.PairID, err)
			}
			name := picture(p.PairID)
			if err := x.write(name, raw); err != nil {
				return err
			}
			answer := "right"
			if p.LeftWins {
				answer = "left"
			}
			entries = append(entries, entry{p.PairID, name, []turn{
				{"human", "<image>\n" + askBetter + x.by[p.Left].Caption}, {"gpt", answer},
			}})
			x.Rows[split]++
		}
		raw, err := json.MarshalIndent(entries, "", " ")
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		if err := x.write(split+".json", append(raw, '\n')); err != nil {
			return err
		}
	}
	return nil
}

// sideBySide puts two pictures next to one another, top edges in line.
func sideBySide(left, right []byte) ([]byte, error) {
	l, err := png.Decode(bytes.NewReader(left))
	if err != nil {
		return nil, fmt.Errorf("left picture: %w", err)
	}
	r, err := png.Decode(bytes.NewReader(right))
	if err != nil {
		return nil, fmt.Errorf("right picture: %w", err)
	}
	lb, rb := l.Bounds(), r.Bounds()
	wide := image.NewNRGBA(image.Rect(0, 0, lb.Dx()+rb.Dx(), max(lb.Dy(), rb.Dy())))
	draw.Draw(wide, image.Rect(0, 0, lb.Dx(), lb.Dy()), l, lb.Min, draw.Src)
	draw.Draw(wide, image.Rect(lb.Dx(), 0, lb.Dx()+rb.Dx(), rb.Dy()), r, rb.Min, draw.Src)
	var b bytes.Buffer
	if err := png.Encode(&b, wide); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
