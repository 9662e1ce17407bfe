package media

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"image"
	"image/gif"
	"image/jpeg"
	"image/png"
	"io"

	"golang.org/x/image/webp"
)

// format is a kind of image.
type format struct {
	name string
	// memory is the most bytes that decoding takes for each pixel. Those of a
	// progressive JPEG have four for each channel before they are a picture; an
	// interlaced PNG is decoded in passes that are pictures, too.
	memory int64
	config func(io.Reader) (image.Config, error)
	// check, if not nil, refuses what the decoder does not look at, before it is
	// decoded.
	check  func(*scanner) error
	decode func(io.Reader) (image.Image, error)
	// orientation, if not nil, is how the decoded image has to be turned.
	orientation func(*scanner) int
	// rest, if not nil, reads what is left behind what decode has read.
	rest func(*bufio.Reader, image.Config, image.Image, Limits) error
}

// pixelMemory is the most bytes that any of formats takes for a pixel.
const pixelMemory = 24

// formats are the images that are taken.
var formats = map[string]format{
	"image/png": {name: "PNG", memory: 12, config: png.DecodeConfig, check: checkPNG, decode: png.Decode, rest: nothingBehind},
	// Cameras write more images behind the first, so that what is behind it is let be.
	"image/jpeg": {name: "JPEG", memory: pixelMemory, config: jpeg.DecodeConfig, decode: jpeg.Decode, orientation: orientation},
	"image/gif":  {name: "GIF", memory: 2, config: gif.DecodeConfig, decode: gif.Decode, rest: restOfGIF},
	"image/webp": {name: "WebP", memory: 16, config: webp.DecodeConfig, check: checkWebP, decode: webp.Decode},
}

// inspectImage decodes an image, when it is of a size that may be.
func (i *Inspector) inspectImage(src *source, f format) (Found, error) {
	config, err := f.config(bufio.NewReaderSize(src, readAhead))
	if err != nil {
		return Found{}, undecodable(f, err)
	}
	width, height := config.Width, config.Height
	switch pixels := int64(width) * int64(height); {
	case width < 1 || height < 1:
		return Found{}, invalid("the image has no pixels")
	case width > i.limits.ImageSide || height > i.limits.ImageSide:
		return Found{}, invalid("the image has %d by %d pixels: the most is %d each way", width, height, i.limits.ImageSide)
	case pixels > i.limits.ImagePixels:
		return Found{}, invalid("the image has %d by %d pixels: the most is %d in all", width, height, i.limits.ImagePixels)
	}
	memory := int64(width) * int64(height) * f.memory
	if memory > i.limits.Memory {
		return Found{}, invalid("the image has %d by %d pixels: to look into a %s there is memory for %d in all", width, height, f.name, i.limits.Memory/f.memory)
	}
	release, err := i.take(src.ctx, memory)
	if err != nil {
		return Found{}, err
	}
	defer release()
	if f.check != nil {
		if err := src.seek(0); err != nil {
			return Found{}, err
		}
		if err := f.check(newScanner(src)); err != nil {
			return Found{}, err
		}
	}
	if err := src.seek(0); err != nil {
		return Found{}, err
	}
	b := bufio.NewReaderSize(src, readAhead)
	decoded, err := f.decode(b)
	if err != nil {
		return Found{}, undecodable(f, err)
	}
	if f.rest != nil {
		if err := f.rest(b, config, decoded, i.limits); err != nil {
			return Found{}, err
		}
	}
	small, side := thumbnail(decoded, image.Rect(0, 0, width, height)), upright
	if f.orientation != nil {
		if err := src.seek(0); err != nil {
			return Found{}, err
		}
		side = f.orientation(newScanner(src))
	}
	if onItsSide(side) {
		width, height = height, width
	}
	return Found{Width: width, Height: height, Thumbnail: turned(small, side)}, nil
}

// undecodable says that an image could not be decoded. What decoders say of contents
// is no secret.
func undecodable(f format, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return cutOff()
	}
	return invalid("it is no %s that can be decoded: %s", f.name, err)
}

// nothingBehind makes sure that contents end where the image does: a program that crops
// an image in place leaves what was cropped behind it.
func nothingBehind(b *bufio.Reader, _ image.Config, _ image.Image, _ Limits) error {
	if behind, _ := b.Peek(1); len(behind) > 0 {
		return invalid("something else is behind the end of the image: save it again")
	}
	return nil
}

// maxChunks bounds how many chunks of a PNG come before its pixels.
const maxChunks = 10_000

// checkPNG refuses an animated PNG, of which decoders see the first picture alone.
func checkPNG(s *scanner) error {
	var head [8]byte
	if err := s.skipTo(8); err != nil {
		return err
	}
	for range maxChunks {
		if err := s.read(head[:]); err != nil {
			return err
		}
		switch kind := string(head[4:]); kind {
		case "acTL":
			return invalid("it is an animated PNG: make it a GIF or a video")
		case "IDAT", "IEND":
			return nil
		}
		const checksum = 4
		if err := s.skipTo(s.at + int64(binary.BigEndian.Uint32(head[:])) + checksum); err != nil {
			return err
		}
	}
	return invalid("more than %d chunks come before its pixels", maxChunks)
}

// checkWebP refuses an animated WebP, which the decoder does not decode, and one that
// is shorter or longer than it says.
func checkWebP(s *scanner) error {
	var head [21]byte
	if err := s.read(head[:]); err != nil {
		return err
	}
	const riffHeader = 8
	length := int64(binary.LittleEndian.Uint32(head[4:])) + riffHeader
	length += length % 2 // chunks begin at even positions
	switch {
	case length > s.size:
		return cutOff()
	case length < s.size:
		return invalid("something else is behind the end of the image: save it again")
	}
	const animated = 0x02
	if bytes.Equal(head[12:16], []byte("VP8X")) && head[20]&animated != 0 {
		return invalid("it is an animated WebP: make it a GIF or a video")
	}
	return nil
}
