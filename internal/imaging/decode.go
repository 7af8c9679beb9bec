package imaging

import (
	"bytes"
	"fmt"
	"image"
	"image/png"
)

// MaxSidePx is the longest side of a picture that is decoded: a creative has at most 2048.
const MaxSidePx = 4096

// DecodePNG decodes a picture of at most maxSide pixels a side. The size is read and judged first: a hundred bytes can
// declare a picture of gigabytes.
func DecodePNG(raw []byte, maxSide int) (image.Image, error) {
	c, err := png.DecodeConfig(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	if c.Width > maxSide || c.Height > maxSide {
		return nil, fmt.Errorf("the picture declares %dx%d pixels: at most %d a side are taken", c.Width, c.Height, maxSide)
	}
	return png.Decode(bytes.NewReader(raw))
}
