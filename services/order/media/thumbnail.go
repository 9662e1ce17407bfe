package media

import (
	"fmt"
	"image"
	"image/color"
	"strconv"
	"strings"

	"golang.org/x/image/draw"
	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"

	"github.com/marquee-ads/marquee/services/order"
)

// ThumbnailSide is the most pixels that a thumbnail has each way.
const ThumbnailSide = 320

// thumbnail makes an image small, or leaves its size when it is. The image is a part of
// a canvas, or all of it.
func thumbnail(decoded image.Image, canvas image.Rectangle) *image.RGBA {
	out := image.NewRGBA(within(canvas, ThumbnailSide))
	// Looking at all pixels of a large image takes seconds; every other one does.
	const rough = 4
	if canvas.Dx() > rough*ThumbnailSide || canvas.Dy() > rough*ThumbnailSide {
		smaller := image.NewRGBA(within(canvas, rough*ThumbnailSide))
		draw.ApproxBiLinear.Scale(smaller, part(decoded.Bounds(), canvas, smaller.Rect), decoded, decoded.Bounds(), draw.Src, nil)
		decoded, canvas = smaller, smaller.Rect
	}
	draw.CatmullRom.Scale(out, part(decoded.Bounds(), canvas, out.Rect), decoded, decoded.Bounds(), draw.Src, nil)
	return out
}

// within is a canvas that is at most so large each way.
func within(canvas image.Rectangle, most int) image.Rectangle {
	width, height := canvas.Dx(), canvas.Dy()
	if longest := max(width, height); longest > most {
		width, height = width*most/longest, height*most/longest
	}
	return image.Rect(0, 0, max(1, width), max(1, height))
}

// part is where a part of a canvas is on a smaller one.
func part(bounds, canvas, smaller image.Rectangle) image.Rectangle {
	across := func(x int) int { return (x - canvas.Min.X) * smaller.Dx() / canvas.Dx() }
	down := func(y int) int { return (y - canvas.Min.Y) * smaller.Dy() / canvas.Dy() }
	return image.Rect(across(bounds.Min.X), down(bounds.Min.Y), across(bounds.Max.X), down(bounds.Max.Y))
}

// Of the screen on which a text is drawn for its thumbnail.
const (
	textWidth  = ThumbnailSide
	textHeight = ThumbnailSide * 9 / 16
	textMargin = 8
)

// fonts draw texts. They have Latin, Greek and Cyrillic letters; of others a box is
// drawn.
type fonts struct{ regular, bold *opentype.Font }

func parseFonts() (fonts, error) {
	regular, err := opentype.Parse(goregular.TTF)
	if err != nil {
		return fonts{}, fmt.Errorf("reading the font: %w", err)
	}
	bold, err := opentype.Parse(gobold.TTF)
	if err != nil {
		return fonts{}, fmt.Errorf("reading the bold font: %w", err)
	}
	return fonts{regular: regular, bold: bold}, nil
}

// lineOfEm is how high a line is, in heights of the font's letters.
const lineOfEm = 1.2

// draw draws a text as a screen shows it, and smaller when it does not fit.
func (f fonts) draw(t order.Text) (image.Image, error) {
	foreground, err := rgb(t.Color)
	if err != nil {
		return nil, err
	}
	background, err := rgb(t.Background)
	if err != nil {
		return nil, err
	}
	out := image.NewRGBA(image.Rect(0, 0, textWidth, textHeight))
	draw.Draw(out, out.Rect, image.NewUniform(background), image.Point{}, draw.Src)

	lines := strings.Split(t.Text, "\n")
	height := min(float64(textHeight*t.SizePercent)/100, float64(textHeight)/float64(len(lines)))
	face, err := f.face(t.Bold, height)
	if err != nil {
		return nil, err
	}
	defer func() { face.Close() }()
	widest := fixed.Int26_6(0)
	for _, line := range lines {
		widest = max(widest, font.MeasureString(face, line))
	}
	if room := fixed.I(textWidth - 2*textMargin); widest > room {
		height *= float64(room) / float64(widest)
		smaller, err := f.face(t.Bold, height)
		if err != nil {
			return nil, err
		}
		face.Close()
		face = smaller
	}
	pen := font.Drawer{Dst: out, Src: image.NewUniform(foreground), Face: face}
	top := (textHeight - height*float64(len(lines))) / 2
	for i, line := range lines {
		free := fixed.I(textWidth) - pen.MeasureString(line)
		switch t.Alignment {
		case order.Left:
			pen.Dot.X = fixed.I(textMargin)
		case order.Right:
			pen.Dot.X = free - fixed.I(textMargin)
		default:
			pen.Dot.X = free / 2
		}
		// The letters stand on a line that is a quarter of their height above the next.
		pen.Dot.Y = fixed.Int26_6((top + height*(float64(i)+0.8)) * 64)
		pen.DrawString(line)
	}
	return out, nil
}

// face is the font for lines of a height in pixels.
func (f fonts) face(bold bool, height float64) (font.Face, error) {
	chosen := f.regular
	if bold {
		chosen = f.bold
	}
	face, err := opentype.NewFace(chosen, &opentype.FaceOptions{Size: max(1, height/lineOfEm), DPI: 72, Hinting: font.HintingNone})
	if err != nil {
		return nil, fmt.Errorf("making letters: %w", err)
	}
	return face, nil
}

// rgb reads "#RRGGBB".
func rgb(text string) (color.RGBA, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "#"), 16, 24)
	if err != nil {
		return color.RGBA{}, fmt.Errorf("reading the colour %q: %w", text, err)
	}
	return color.RGBA{R: uint8(n >> 16), G: uint8(n >> 8), B: uint8(n), A: 0xff}, nil
}
