package media

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"time"
)

// Ids of elements of WebM (https://www.matroska.org/technical/elements.html).
const (
	webmHeader         = 0x1a45dfa3
	webmDocType        = 0x4282
	webmSegment        = 0x18538067
	webmInfo           = 0x1549a966
	webmTimestampScale = 0x2ad7b1
	webmDuration       = 0x4489
	webmTracks         = 0x1654ae6b
	webmTrackEntry     = 0xae
	webmTrackType      = 0x83
	webmVideo          = 0xe0
	webmPixelWidth     = 0xb0
	webmPixelHeight    = 0xba
	webmCluster        = 0x1f43b675
	webmTimestamp      = 0xe7
	webmBlockGroup     = 0xa0
	webmBlock          = 0xa1
	webmSimpleBlock    = 0xa3
)

const (
	// maxElements bounds the elements that are looked at: ten minutes of pictures and
	// sound have about a hundred thousand blocks.
	maxElements = 1_000_000
	// unknownSize is that of an element that was written before its end was known: it
	// ends where one begins that cannot be in it.
	unknownSize = -1
)

// inspectWebM reads a WebM: its elements end where it does. A browser that records one
// writes neither its length nor that of its parts; it is as long as its last block is
// late then.
func inspectWebM(s *scanner) (Found, error) {
	id, size, err := s.element()
	if err != nil {
		return Found{}, err
	}
	if id != webmHeader || size == unknownSize {
		return Found{}, invalid("it is no WebM")
	}
	header, err := s.readTo(s.at + size)
	if err != nil {
		return Found{}, err
	}
	var docType []byte
	if err := eachElement(header, func(id uint32, body []byte) error {
		if id == webmDocType {
			docType = bytes.TrimRight(body, "\x00")
		}
		return nil
	}); err != nil {
		return Found{}, err
	}
	if string(docType) != "webm" {
		return Found{}, invalid("it is no WebM, but another kind of Matroska")
	}
	if id, size, err = s.element(); err != nil {
		return Found{}, err
	}
	switch {
	case id != webmSegment:
		return Found{}, invalid("the WebM has no segment")
	case size != unknownSize && s.at+size < s.size:
		return Found{}, invalid("something else is behind the end of the video: save it again")
	}
	w := recording{scale: 1e6}
	for n := 0; s.at < s.size; n++ {
		if n == maxElements {
			return Found{}, invalid("the WebM has more than %d elements", maxElements)
		}
		if err := w.read(s); err != nil {
			return Found{}, err
		}
	}
	return w.found()
}

// element reads the beginning of an element.
func (s *scanner) element() (id uint32, size int64, err error) {
	var b [8]byte
	if err := s.read(b[:1]); err != nil {
		return 0, 0, err
	}
	n := bits.LeadingZeros8(b[0])
	if n > 3 {
		return 0, 0, brokenElement()
	}
	if err := s.read(b[1 : 1+n]); err != nil {
		return 0, 0, err
	}
	id = uint32(number(b[:1+n]))
	if err := s.read(b[:1]); err != nil {
		return 0, 0, err
	}
	if n = bits.LeadingZeros8(b[0]); n > 7 {
		return 0, 0, brokenElement()
	}
	if err := s.read(b[1 : 1+n]); err != nil {
		return 0, 0, err
	}
	value, known := sizeOf(b[:1+n])
	switch {
	case !known:
		return id, unknownSize, nil
	case value > uint64(s.size-s.at):
		return 0, 0, cutOff()
	}
	return id, int64(value), nil
}

func brokenElement() error {
	return invalid("the WebM is broken: an element does not fit into that around it")
}

// number is what at most eight bytes stand for.
func number(b []byte) (n uint64) {
	for _, one := range b {
		n = n<<8 | uint64(one)
	}
	return n
}

// sizeOf is the size that so many bytes stand for, the first of which has their number
// in its leading zeros. All ones are a size that is not known.
func sizeOf(b []byte) (size uint64, known bool) {
	most := uint64(1)<<(7*len(b)) - 1
	size = number(b) & most
	return size, size != most
}

// eachElement calls use for each element of an element's body.
func eachElement(b []byte, use func(id uint32, body []byte) error) error {
	for len(b) > 0 {
		n := 1 + bits.LeadingZeros8(b[0])
		if n > 4 || len(b) <= n {
			return brokenElement()
		}
		id := uint32(number(b[:n]))
		b = b[n:]
		if n = 1 + bits.LeadingZeros8(b[0]); n > 8 || len(b) < n {
			return brokenElement()
		}
		size, known := sizeOf(b[:n])
		if b = b[n:]; !known || size > uint64(len(b)) {
			return brokenElement()
		}
		if err := use(id, b[:size]); err != nil {
			return err
		}
		b = b[size:]
	}
	return nil
}

// recording is what the elements of a WebM say.
type recording struct {
	video         bool
	width, height uint64
	scale         float64 // nanoseconds of a unit
	units         float64 // as it says
	clusters      int
	cluster       uint64 // when the present one begins, in units
	last          float64
}

// read reads the next element of a segment. Those in a cluster are read as if they were
// beside it, so that its end need not be known.
func (w *recording) read(s *scanner) error {
	id, size, err := s.element()
	if err != nil {
		return err
	}
	if id == webmCluster {
		return w.readCluster(s, size)
	}
	if size == unknownSize {
		return invalid("the WebM has an element 0x%x without a size", id)
	}
	end := s.at + size
	switch id {
	case webmInfo, webmTracks:
		body, err := s.readTo(end)
		if err != nil {
			return err
		}
		if id == webmInfo {
			return w.readInfo(body)
		}
		return w.readTracks(body)
	case webmBlockGroup:
		return nil
	case webmTimestamp:
		return w.readTimestamp(s, size)
	case webmBlock, webmSimpleBlock:
		if err := w.readBlock(s, size); err != nil {
			return err
		}
	}
	return s.skipTo(end)
}

// readCluster reads when a cluster begins. What is in it is skipped when its end and
// the recording's length are known.
func (w *recording) readCluster(s *scanner, size int64) error {
	w.clusters++
	if size == unknownSize || w.units == 0 {
		return nil
	}
	end := s.at + size
	id, size, err := s.element()
	if err != nil {
		return err
	}
	if id == webmTimestamp && size != unknownSize {
		if err := w.readTimestamp(s, size); err != nil {
			return err
		}
	}
	if s.at > end {
		return brokenElement()
	}
	return s.skipTo(end)
}

func (w *recording) readTimestamp(s *scanner, size int64) error {
	if size > 8 {
		return brokenElement()
	}
	value := make([]byte, size)
	if err := s.read(value); err != nil {
		return err
	}
	w.cluster = number(value)
	w.last = max(w.last, float64(w.cluster))
	return nil
}

// readBlock reads when a block is: behind the number of its track.
func (w *recording) readBlock(s *scanner, size int64) error {
	var b [10]byte
	if err := s.read(b[:1]); err != nil {
		return err
	}
	n := bits.LeadingZeros8(b[0])
	if n > 7 || size < int64(1+n+2) {
		return brokenElement()
	}
	if err := s.read(b[1 : 1+n+2]); err != nil {
		return err
	}
	late := int16(binary.BigEndian.Uint16(b[1+n:]))
	w.last = max(w.last, float64(w.cluster)+float64(late))
	return nil
}

func (w *recording) readInfo(b []byte) error {
	return eachElement(b, func(id uint32, body []byte) error {
		switch {
		case id == webmTimestampScale && len(body) <= 8:
			w.scale = float64(number(body))
		case id == webmDuration && len(body) == 4:
			w.units = float64(math.Float32frombits(binary.BigEndian.Uint32(body)))
		case id == webmDuration && len(body) == 8:
			w.units = math.Float64frombits(binary.BigEndian.Uint64(body))
		}
		return nil
	})
}

func (w *recording) readTracks(b []byte) error {
	return eachElement(b, func(id uint32, entry []byte) error {
		if id != webmTrackEntry || w.video {
			return nil
		}
		var kind, width, height uint64
		err := eachElement(entry, func(id uint32, body []byte) error {
			switch {
			case id == webmTrackType && len(body) <= 8:
				kind = number(body)
			case id == webmVideo:
				return eachElement(body, func(id uint32, body []byte) error {
					switch {
					case id == webmPixelWidth && len(body) <= 8:
						width = number(body)
					case id == webmPixelHeight && len(body) <= 8:
						height = number(body)
					}
					return nil
				})
			}
			return nil
		})
		const isVideo = 1
		if kind == isVideo && width > 0 && height > 0 {
			w.video, w.width, w.height = true, width, height
		}
		return err
	})
}

func (w *recording) found() (Found, error) {
	switch {
	case !w.video:
		return Found{}, invalid("the WebM has no video track")
	case w.clusters == 0:
		return Found{}, cutOff()
	}
	const most = float64(24 * time.Hour) // too long for anything
	length := max(w.units, w.last) * w.scale
	if math.IsNaN(length) || length < 0 {
		length = 0
	}
	return Found{
		Width: int(min(w.width, math.MaxInt32)), Height: int(min(w.height, math.MaxInt32)), Duration: time.Duration(min(length, most)),
	}, nil
}
