package media

import (
	"bytes"
	"encoding/binary"
	"image"
	"slices"
)

// upright is the orientation of an image whose first row is at the top and whose
// first column is on the left.
const upright = 1

// orientation is how a camera was held, 1 to 8, as a JPEG says in Exif (CIPA DC-008,
// tag 0x0112) and browsers show it. What is not said, or not understood, is upright.
func orientation(s *scanner) int {
	var head [4]byte
	if s.skipTo(2) != nil { // the start of the image
		return upright
	}
	const scan, application1 = 0xda, 0xe1
	for s.read(head[:]) == nil && head[0] == 0xff && head[1] != scan {
		end := s.at - 2 + int64(binary.BigEndian.Uint16(head[2:]))
		if end < s.at {
			return upright
		}
		if head[1] != application1 {
			if s.skipTo(end) != nil {
				return upright
			}
			continue
		}
		body, err := s.readTo(end)
		if err != nil {
			return upright
		}
		if tiff, ok := bytes.CutPrefix(body, []byte("Exif\x00\x00")); ok {
			return orientationOf(tiff)
		}
	}
	return upright
}

// orientationOf reads it from the first directory of a TIFF.
func orientationOf(tiff []byte) int {
	var order binary.ByteOrder = binary.BigEndian
	switch {
	case bytes.HasPrefix(tiff, []byte("II*\x00")):
		order = binary.LittleEndian
	case !bytes.HasPrefix(tiff, []byte("MM\x00*")):
		return upright
	}
	if len(tiff) < 8 {
		return upright
	}
	at := uint64(order.Uint32(tiff[4:]))
	if at+2 > uint64(len(tiff)) {
		return upright
	}
	entries := tiff[at+2:]
	for range order.Uint16(tiff[at:]) {
		const size, tag = 12, 0x0112
		if len(entries) < size {
			return upright
		}
		if order.Uint16(entries) == tag {
			if o := int(order.Uint16(entries[8:])); o >= 1 && o <= 8 {
				return o
			}
			return upright
		}
		entries = entries[size:]
	}
	return upright
}

// onItsSide says whether width and height of an orientation are exchanged.
func onItsSide(orientation int) bool { return orientation >= 5 }

// turned is an image as it is shown.
func turned(m *image.RGBA, orientation int) *image.RGBA {
	if orientation == upright {
		return m
	}
	width, height := m.Rect.Dx(), m.Rect.Dy()
	fromRight := slices.Contains([]int{2, 3, 7, 8}, orientation)
	fromBottom := slices.Contains([]int{3, 4, 6, 7}, orientation)
	out := image.NewRGBA(m.Rect)
	if onItsSide(orientation) {
		out = image.NewRGBA(image.Rect(0, 0, height, width))
	}
	for y := range out.Rect.Dy() {
		for x := range out.Rect.Dx() {
			from := image.Pt(x, y)
			if onItsSide(orientation) {
				from = image.Pt(y, x)
			}
			if fromRight {
				from.X = width - 1 - from.X
			}
			if fromBottom {
				from.Y = height - 1 - from.Y
			}
			out.SetRGBA(x, y, m.RGBAAt(from.X, from.Y))
		}
	}
	return out
}
