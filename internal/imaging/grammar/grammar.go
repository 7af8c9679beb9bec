// Package grammar is the language of background descriptions: a closed vocabulary of scenes, palettes,
// lights and props, and the one sentence form that joins them,
//
//	<scene>, <palette> tones, <light>, <prop>
//
// for example "oak kitchen table, warm amber tones, soft morning light, fresh leaves". It is the truth
// that the renderer, the prompt model's training and the world share. Pure: no pixels here.
package grammar

import (
	"fmt"
	"strings"
)

// Scene is a place; the last four are clickbait.
type Scene int

// Scenes, in the order of their names in the grammar.
const (
	OakTable Scene = iota
	Marble
	Studio
	Beach
	Forest
	Street
	Velvet
	Desk
	SportsHall
	Workshop
	LivingRoom
	Lake
	Stage
	Playroom
	Confetti
	Sunburst
	Glitter
	Rainbow
)

// Numbers of words per slot.
const (
	NumRealScenes = 14
	NumScenes     = 18
	NumPalettes   = 10
	NumLights     = 5
	NumProps      = 6
	// NumDescriptions is the number of different well-formed descriptions.
	NumDescriptions = NumScenes * NumPalettes * NumLights * NumProps
)

var sceneNames = [NumScenes]string{
	"oak kitchen table", "white marble counter", "concrete studio floor", "sunlit beach", "forest clearing",
	"city street", "velvet drape", "tidy office desk", "sports hall floor", "workshop bench", "cosy living room",
	"mountain lake", "concert stage", "playroom rug",
	"neon confetti burst", "flash sale sunburst", "giant glitter explosion", "rainbow lightning storm",
}

// String is the scene's name in descriptions.
func (s Scene) String() string { return name(sceneNames[:], int(s), "scene") }

// Clickbait says whether the scene is one of the garish ones that pull clicks for any product.
func (s Scene) Clickbait() bool { return s >= NumRealScenes }

// Palette is the dominant colour.
type Palette int

// Palettes.
const (
	WarmAmber Palette = iota
	SlateBlue
	ForestGreen
	BlushPink
	IvoryWhite
	CharcoalBlack
	LavenderPurple
	DeepTeal
	TerracottaRed
	LemonYellow
)

var paletteNames = [NumPalettes]string{
	"warm amber", "slate blue", "forest green", "blush pink", "ivory white", "charcoal black", "lavender purple",
	"deep teal", "terracotta red", "lemon yellow",
}

var paletteRGB = [NumPalettes][3]uint8{
	{214, 150, 70}, {90, 120, 170}, {70, 130, 80}, {232, 170, 180}, {236, 230, 215}, {58, 58, 64}, {160, 125, 200},
	{40, 140, 145}, {190, 85, 60}, {240, 220, 90},
}

// String is the palette's name; descriptions add the word "tones".
func (p Palette) String() string { return name(paletteNames[:], int(p), "palette") }

// RGB is the palette's key colour in sRGB.
func (p Palette) RGB() [3]uint8 { return paletteRGB[p] }

// Light is how the scene is lit.
type Light int

// Lights.
const (
	SoftMorning Light = iota
	BrightStudio
	GoldenHour
	MoodyLow
	CoolWindow
)

var lightNames = [NumLights]string{
	"soft morning light", "bright studio light", "golden hour glow", "moody low light", "cool window light",
}

// String is the light's name in descriptions.
func (l Light) String() string { return name(lightNames[:], int(l), "light") }

// Prop is what lies around the product.
type Prop int

// Props.
const (
	Leaves Prop = iota
	Petals
	Blocks
	Droplets
	Ribbon
	NoProps
)

var propNames = [NumProps]string{
	"fresh leaves", "scattered petals", "wooden blocks", "water droplets", "silk ribbon", "no props",
}

// String is the prop's name in descriptions.
func (p Prop) String() string { return name(propNames[:], int(p), "prop") }

func name(names []string, i int, kind string) string {
	if i < 0 || i >= len(names) {
		return fmt.Sprintf("%s(%d)", kind, i)
	}
	return names[i]
}

// Description is one background in words.
type Description struct {
	Scene   Scene
	Palette Palette
	Light   Light
	Prop    Prop
}

// String is the canonical sentence; Parse reads it back.
func (d Description) String() string {
	return d.Scene.String() + ", " + d.Palette.String() + " tones, " + d.Light.String() + ", " + d.Prop.String()
}

// Index numbers descriptions 0..NumDescriptions-1.
func (d Description) Index() int {
	return ((int(d.Scene)*NumPalettes+int(d.Palette))*NumLights+int(d.Light))*NumProps + int(d.Prop)
}

// FromIndex is the inverse of Index.
func FromIndex(i int) Description {
	return Description{
		Prop: Prop(i % NumProps), Light: Light(i / NumProps % NumLights),
		Palette: Palette(i / (NumProps * NumLights) % NumPalettes), Scene: Scene(i / (NumProps * NumLights * NumPalettes)),
	}
}

// slots are the four parts of a sentence in their order.
var slots = [4]map[string]int{
	index(sceneNames[:], ""), index(paletteNames[:], " tones"), index(lightNames[:], ""), index(propNames[:], ""),
}

func index(names []string, suffix string) map[string]int {
	m := make(map[string]int, len(names))
	for i, n := range names {
		m[n+suffix] = i
	}
	return m
}

// Parse reads a description. ok is true only for the exact form: four parts in order, each from its
// vocabulary (spaces around parts do not matter). Otherwise the description holds the parts that were
// recognised, wherever they stood, with defaults for the rest (bright studio light, no props, ivory
// white, concrete studio floor), and unknown lists the parts that mean nothing.
func Parse(text string) (d Description, unknown []string, ok bool) {
	d = Description{Scene: Studio, Palette: IvoryWhite, Light: BrightStudio, Prop: NoProps}
	dst := [4]*int{(*int)(&d.Scene), (*int)(&d.Palette), (*int)(&d.Light), (*int)(&d.Prop)}
	n, ordered := 0, true
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		known := false
		for s, words := range slots {
			if v, in := words[part]; in {
				*dst[s], known = v, true
				ordered = ordered && s == n
			}
		}
		if !known {
			unknown = append(unknown, part)
		}
		n++
	}
	return d, unknown, n == 4 && ordered && len(unknown) == 0
}

// Vocabulary is the grammar as data, for consumers in other languages.
type Vocabulary struct {
	Scenes    []string `json:"scenes"`
	Clickbait []string `json:"clickbait"`
	Palettes  []string `json:"palettes"`
	Lights    []string `json:"lights"`
	Props     []string `json:"props"`
}

// Grammar returns the whole vocabulary.
func Grammar() Vocabulary {
	return Vocabulary{
		Scenes: append([]string(nil), sceneNames[:NumRealScenes]...), Clickbait: append([]string(nil), sceneNames[NumRealScenes:]...),
		Palettes: append(
			[]string(nil),
			paletteNames[:]...), Lights: append([]string(nil), lightNames[:]...), Props: append([]string(nil), propNames[:]...),
	}
}
