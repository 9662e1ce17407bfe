package demo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"strings"
)

// creative is a picture with words on it.
type creative struct {
	id    string
	words string // of the letters A to Z
	// ground is what the words stand on, band what crosses it.
	ground, band color.RGBA
}

const (
	pictureWidth  = 960
	pictureHeight = 540
)

// picture draws it; the same each time.
func (c creative) picture() *image.Paletted {
	const ground, band, ink = 0, 1, 2
	img := image.NewPaletted(image.Rect(0, 0, pictureWidth, pictureHeight),
		color.Palette{ground: c.ground, band: c.band, ink: color.White})
	for i := range img.Pix {
		if (i%img.Stride+i/img.Stride)%480 < 120 {
			img.Pix[i] = band
		}
	}
	words := strings.Fields(c.words)
	widest := 0
	for _, word := range words {
		widest = max(widest, len(word)*letterPitch-1)
	}
	// A tenth of the picture stays free on each side.
	dot := min(pictureWidth*8/10/widest, pictureHeight*8/10/(len(words)*linePitch-2))
	top := (pictureHeight - (len(words)*linePitch-2)*dot) / 2
	for line, word := range words {
		left := (pictureWidth - (len(word)*letterPitch-1)*dot) / 2
		for n, letter := range []byte(word) {
			for y := range letterHeight {
				for x := range letterWidth {
					if !inked(letter, x, y) {
						continue
					}
					for i := range dot * dot {
						img.SetColorIndex(left+(n*letterPitch+x)*dot+i%dot, top+(line*linePitch+y)*dot+i/dot, ink)
					}
				}
			}
		}
	}
	return img
}

const (
	letterWidth  = 5
	letterHeight = 7
	letterPitch  = letterWidth + 1
	linePitch    = letterHeight + 2
	halfAlphabet = 13
)

// inked says whether a dot of a letter, A to Z, is drawn.
func inked(letter byte, x, y int) bool {
	n := int(letter - 'A')
	rows := strings.Split(strings.TrimSpace(alphabet), "\n")
	return rows[n/halfAlphabet*letterHeight+y][n%halfAlphabet*letterPitch+x] == '#'
}

const alphabet = `
.###. ####. .###. ####. ##### ##### .###. #...# .###. ..### #...# #.... #...#
#...# #...# #...# #...# #.... #.... #...# #...# ..#.. ...#. #..#. #.... ##.##
#...# #...# #.... #...# #.... #.... #.... #...# ..#.. ...#. #.#.. #.... #.#.#
##### ####. #.... #...# ####. ####. #.### ##### ..#.. ...#. ##... #.... #.#.#
#...# #...# #.... #...# #.... #.... #...# #...# ..#.. ...#. #.#.. #.... #...#
#...# #...# #...# #...# #.... #.... #...# #...# ..#.. #..#. #..#. #.... #...#
#...# ####. .###. ####. ##### #.... .###. #...# .###. .##.. #...# ##### #...#
#...# .###. ####. .###. ####. .#### ##### #...# #...# #...# #...# #...# #####
##..# #...# #...# #...# #...# #.... ..#.. #...# #...# #...# #...# #...# ....#
#.#.# #...# #...# #...# #...# #.... ..#.. #...# #...# #...# .#.#. .#.#. ...#.
#..## #...# ####. #...# ####. .###. ..#.. #...# #...# #.#.# ..#.. ..#.. ..#..
#...# #...# #.... #.#.# #.#.. ....# ..#.. #...# #...# #.#.# .#.#. ..#.. .#...
#...# #...# #.... #..#. #..#. ....# ..#.. #...# .#.#. ##.## #...# ..#.. #....
#...# .###. #.... .##.# #...# ####. ..#.. .###. ..#.. #...# #...# ..#.. #####
`

// media are pictures by the creative's id.
type media map[string]picture

// picture is one as it is uploaded.
type picture struct {
	sum     string // SHA-256, in hexadecimal digits
	content []byte // PNG
}

// drawMedia makes the pictures of all owners: each time the same.
func drawMedia(owners []owner) (media, error) {
	all := media{}
	for _, o := range owners {
		for _, c := range o.creatives {
			var content bytes.Buffer
			encoder := png.Encoder{CompressionLevel: png.BestSpeed}
			if err := encoder.Encode(&content, c.picture()); err != nil {
				return nil, fmt.Errorf("making the picture of %s: %w", c.id, err)
			}
			sum := sha256.Sum256(content.Bytes())
			all[c.id] = picture{sum: hex.EncodeToString(sum[:]), content: content.Bytes()}
		}
	}
	return all, nil
}
