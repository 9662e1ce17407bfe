package media

import (
	"bufio"
	"compress/lzw"
	"encoding/binary"
	"errors"
	"image"
	"io"
)

// What blocks of a GIF begin with (https://www.w3.org/Graphics/GIF/spec-gif89a.txt).
const (
	gifExtension = 0x21
	gifImage     = 0x2c
	gifTrailer   = 0x3b
)

// restOfGIF goes through the pictures behind the first of a GIF without keeping them:
// all of them are there, and they are not too many.
func restOfGIF(b *bufio.Reader, config image.Config, first image.Image, limits Limits) error {
	canvas := image.Rect(0, 0, config.Width, config.Height)
	pixels := area(first.Bounds())
	for frames := 1; ; {
		kind, err := b.ReadByte()
		if err != nil {
			return cutOff()
		}
		switch kind {
		case gifTrailer:
			return nothingBehind(b, config, first, limits)
		case gifExtension:
			if _, err := b.ReadByte(); err != nil {
				return cutOff()
			}
			if err := (&subBlocks{r: b}).skip(); err != nil {
				return err
			}
		case gifImage:
			bounds, err := readFrame(b)
			if err != nil {
				return err
			}
			if frames++; frames > limits.Frames {
				return invalid("the GIF has more than %d pictures: make it a video", limits.Frames)
			}
			if pixels += area(bounds); pixels > limits.FramePixels {
				return invalid("the pictures of the GIF have more than %d pixels together: make it a video", limits.FramePixels)
			}
			if !bounds.In(canvas) {
				return invalid("a picture of the GIF is larger than the GIF")
			}
			if err := skipPixels(b, area(bounds)); err != nil {
				return err
			}
		default:
			return invalid("it is no GIF that can be decoded: it has a block 0x%02x", kind)
		}
	}
}

func area(r image.Rectangle) int64 { return int64(r.Dx()) * int64(r.Dy()) }

// readFrame reads where a picture is, up to its pixels.
func readFrame(b *bufio.Reader) (image.Rectangle, error) {
	var d [9]byte
	if _, err := io.ReadFull(b, d[:]); err != nil {
		return image.Rectangle{}, cutOff()
	}
	at := func(i int) int { return int(binary.LittleEndian.Uint16(d[i:])) }
	bounds := image.Rect(at(0), at(2), at(0)+at(4), at(2)+at(6))
	const hasColors, colorBits = 0x80, 0x07
	if d[8]&hasColors != 0 {
		if _, err := b.Discard(3 << (1 + d[8]&colorBits)); err != nil {
			return image.Rectangle{}, cutOff()
		}
	}
	return bounds, nil
}

// skipPixels makes sure that a picture has all its pixels.
func skipPixels(b *bufio.Reader, pixels int64) error {
	width, err := b.ReadByte()
	if err != nil {
		return cutOff()
	}
	if width < 2 || width > 8 {
		return invalid("it is no GIF that can be decoded: its pixels have %d bits", width)
	}
	blocks := &subBlocks{r: b}
	decoder := lzw.NewReader(blocks, lzw.LSB, int(width))
	defer decoder.Close()
	if _, err := io.CopyN(io.Discard, decoder, pixels); err != nil {
		if blocks.cut || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return cutOff()
		}
		return invalid("it is no GIF that can be decoded: %s", err)
	}
	return blocks.skip()
}

// subBlocks reads data that comes in blocks of at most 255 bytes, until an empty one.
type subBlocks struct {
	r    *bufio.Reader
	left int
	done bool
	cut  bool // the contents ended in it
}

func (s *subBlocks) ReadByte() (byte, error) {
	if s.left == 0 {
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	s.left--
	return s.readByte()
}

// Read is for those who do not know ReadByte.
func (s *subBlocks) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	one, err := s.ReadByte()
	if err != nil {
		return 0, err
	}
	p[0] = one
	return 1, nil
}

func (s *subBlocks) next() error {
	if s.done {
		return io.EOF
	}
	size, err := s.readByte()
	if err != nil {
		return err
	}
	if s.left = int(size); size == 0 {
		s.done = true
		return io.EOF
	}
	return nil
}

func (s *subBlocks) readByte() (byte, error) {
	one, err := s.r.ReadByte()
	if err != nil {
		s.cut = true
		return 0, io.ErrUnexpectedEOF
	}
	return one, nil
}

// skip goes to the end.
func (s *subBlocks) skip() error {
	for {
		if _, err := s.r.Discard(s.left); err != nil {
			return cutOff()
		}
		s.left = 0
		if err := s.next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return cutOff()
		}
	}
}
