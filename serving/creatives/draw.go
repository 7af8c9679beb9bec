package creatives

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"image"
	"strconv"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
)

// Drawer turns a description into a picture of the product in front of that background.
type Drawer interface {
	// Name is recorded as the creative's backend.
	Name() string
	// Draw is deterministic by its arguments where the backend can be. valid is false when the description is not
	// well formed; the picture then shows the product on plain ground.
	Draw(ctx context.Context, p *catalogue.Product, description string, seed uint64, px int) (im *image.NRGBA, valid bool, err error)
}

// Scene is the scene renderer in this process. It is no diffusion model.
type Scene struct{}

var _ Drawer = Scene{}

// Name is "scene".
func (Scene) Name() string { return "scene" }

// Draw renders.
func (Scene) Draw(_ context.Context, p *catalogue.Product, description string, seed uint64, px int) (*image.NRGBA, bool, error) {
	im, valid := imaging.Render(p, description, seed, px)
	return im, valid, nil
}

// Why a creative must not serve. The list is closed.
const (
	BlockedInvalid = "invalid description"
	BlockedSize    = "wrong size"
	BlockedDecode  = "does not decode"
	BlockedProduct = "product pixels changed"
)

// guard holds a finished PNG against what every creative promises: it decodes, has the right size, and shows the
// product untouched. It looks at the file that will be served and not at the picture that went in. pixelError is the
// largest difference on the product's own pixels, 0..255.
func guard(file []byte, p *catalogue.Product, px int, valid bool) (blocked string, pixelError int) {
	im, err := imaging.DecodePNG(file, imaging.MaxSidePx)
	if err != nil {
		return BlockedDecode + ": " + err.Error(), 0
	}
	if b := im.Bounds(); b.Dx() != px || b.Dy() != px {
		return fmt.Sprintf("%s: %dx%d instead of %dx%d", BlockedSize, b.Dx(), b.Dy(), px, px), 0
	}
	pixelError = imaging.MaxProductError(toNRGBA(im), p)
	switch {
	case pixelError > 0:
		return fmt.Sprintf("%s: by up to %d of 255", BlockedProduct, pixelError), pixelError
	case !valid:
		return BlockedInvalid, 0
	}
	return "", 0
}

func toNRGBA(im image.Image) *image.NRGBA {
	if n, ok := im.(*image.NRGBA); ok {
		return n
	}
	b := im.Bounds()
	out := image.NewNRGBA(image.Rect(0, 0, b.Dx(), b.Dy()))
	for y := range b.Dy() {
		for x := range b.Dx() {
			out.Set(x, y, im.At(b.Min.X+x, b.Min.Y+y))
		}
	}
	return out
}

// pngSignature and the length of the header chunk that always comes first.
const pngHead = 8 + 4 + 4 + 13 + 4

// annotate writes text chunks into a PNG. A creative carries where it comes from, so that two model versions which
// happen to describe the same picture make two creatives with clicks of their own.
func annotate(file []byte, text ...[2]string) ([]byte, error) {
	if len(file) < pngHead || string(file[12:16]) != "IHDR" {
		return nil, errors.New("not a PNG")
	}
	out := make([]byte, 0, len(file)+64*len(text))
	out = append(out, file[:pngHead]...)
	for _, kv := range text {
		data := append([]byte("tEXt"+kv[0]), 0)
		data = append(data, ascii(kv[1])...)
		out = binary.BigEndian.AppendUint32(out, uint32(len(data)-4))
		out = append(out, data...)
		out = binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(data))
	}
	return append(out, file[pngHead:]...), nil
}

// ascii keeps plain text as it is and quotes anything else: text chunks are Latin-1.
func ascii(s string) string {
	if q := strconv.QuoteToASCII(s); q != `"`+s+`"` {
		return q
	}
	return s
}
