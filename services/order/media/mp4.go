package media

import (
	"encoding/binary"
	"math"
	"time"
)

// maxBoxes bounds the boxes of a file: ten minutes in fragments have a few thousand.
const maxBoxes = 100_000

// maxTracks bounds the tracks of a movie, most of which have two.
const maxTracks = 100

// inspectMP4 reads an MP4, fragmented or not (ISO/IEC 14496-12): its boxes end where
// it does, and its tables name nothing that is not there.
func inspectMP4(s *scanner) (Found, error) {
	if head, err := s.b.Peek(8); err != nil || string(head[4:]) != "ftyp" {
		return Found{}, invalid("it is no MP4")
	}
	m := movie{fragments: make(map[uint32]uint64)}
	var data uint64
	for n := 0; s.at < s.size; n++ {
		if n == maxBoxes {
			return Found{}, invalid("the MP4 has more than %d boxes", maxBoxes)
		}
		kind, end, err := s.box()
		if err != nil {
			return Found{}, err
		}
		switch kind {
		case "moov", "moof":
			body, err := s.readTo(end)
			if err != nil {
				return Found{}, err
			}
			if err := m.read(kind, body); err != nil {
				return Found{}, err
			}
		case "mdat":
			data += uint64(end - s.at)
		}
		if err := s.skipTo(end); err != nil {
			return Found{}, err
		}
	}
	switch {
	case !m.there:
		return Found{}, invalid("the MP4 has no movie box: it is cut off, or was not finished")
	case m.samples > data || m.furthest >= uint64(s.size):
		return Found{}, cutOff()
	}
	return m.found()
}

// box reads the beginning of a box, and where it ends.
func (s *scanner) box() (kind string, end int64, err error) {
	begin := s.at
	var head [8]byte
	if err := s.read(head[:]); err != nil {
		return "", 0, err
	}
	size := uint64(binary.BigEndian.Uint32(head[:]))
	switch size {
	case 0:
		size = uint64(s.size - begin)
	case 1:
		var long [8]byte
		if err := s.read(long[:]); err != nil {
			return "", 0, err
		}
		size = binary.BigEndian.Uint64(long[:])
	}
	switch {
	case size < uint64(s.at-begin):
		return "", 0, invalid("the MP4 has a box of %d bytes", size)
	case size > uint64(s.size-begin):
		return "", 0, cutOff()
	}
	return string(head[4:]), begin + int64(size), nil
}

// eachBox calls use for each box of a box's body.
func eachBox(b []byte, use func(kind string, body []byte) error) error {
	for len(b) > 0 {
		if len(b) < 8 {
			return brokenBox()
		}
		size, head := uint64(binary.BigEndian.Uint32(b)), uint64(8)
		switch {
		case size == 0:
			size = uint64(len(b))
		case size == 1 && len(b) >= 16:
			size, head = binary.BigEndian.Uint64(b[8:]), 16
		}
		if size < head || size > uint64(len(b)) {
			return brokenBox()
		}
		if err := use(string(b[4:8]), b[head:size]); err != nil {
			return err
		}
		b = b[size:]
	}
	return nil
}

func brokenBox() error { return invalid("the MP4 is broken: a box does not fit into that around it") }

// movie is what the tables of an MP4 say.
type movie struct {
	there    bool
	length   time.Duration
	tracks   []track
	samples  uint64 // bytes of all samples
	furthest uint64 // where the last chunk of samples begins
	// defaults and fragments are by tracks, in their units of time: how long a sample
	// of a fragment is, and all of them.
	defaults  map[uint32]uint64
	fragments map[uint32]uint64
}

// track is one of a movie.
type track struct {
	id            uint32
	video         bool
	width, height int
	turned        bool // by a quarter
	scale         uint32
	units         uint64
}

func (m *movie) read(kind string, body []byte) error {
	if kind == "moof" {
		return eachBox(body, func(kind string, body []byte) error {
			if kind == "traf" {
				return m.readFragment(body)
			}
			return nil
		})
	}
	if m.there {
		return invalid("the MP4 has two movie boxes")
	}
	m.there, m.defaults = true, make(map[uint32]uint64)
	var scale uint32
	var units uint64
	err := eachBox(body, func(kind string, body []byte) error {
		switch kind {
		case "mvhd":
			var err error
			scale, units, err = clock(body)
			return err
		case "trak":
			if len(m.tracks) == maxTracks {
				return invalid("the MP4 has more than %d tracks", maxTracks)
			}
			var t track
			if err := m.readTrack(&t, body); err != nil {
				return err
			}
			m.tracks = append(m.tracks, t)
		case "mvex":
			return eachBox(body, func(kind string, body []byte) error {
				switch {
				case kind == "trex" && len(body) >= 16 && len(m.defaults) < maxTracks:
					m.defaults[binary.BigEndian.Uint32(body[4:])] = uint64(binary.BigEndian.Uint32(body[12:]))
				case kind == "mehd" && len(body) >= 12 && body[0] == 1:
					units = max(units, binary.BigEndian.Uint64(body[4:]))
				case kind == "mehd" && len(body) >= 8:
					units = max(units, uint64(binary.BigEndian.Uint32(body[4:])))
				}
				return nil
			})
		}
		return nil
	})
	m.length = length(units, scale)
	return err
}

// clock reads how many units a second has, and how many there are, of a header that is
// 4 or 8 bytes wide.
func clock(b []byte) (scale uint32, units uint64, err error) {
	switch {
	case len(b) >= 32 && b[0] == 1:
		scale, units = binary.BigEndian.Uint32(b[20:]), binary.BigEndian.Uint64(b[24:])
		if units == math.MaxUint64 { // not known
			units = 0
		}
	case len(b) >= 20 && b[0] == 0:
		scale, units = binary.BigEndian.Uint32(b[12:]), uint64(binary.BigEndian.Uint32(b[16:]))
		if units == math.MaxUint32 {
			units = 0
		}
	default:
		return 0, 0, brokenBox()
	}
	return scale, units, nil
}

// length is so many units; no more than a day, which is too long for anything.
func length(units uint64, scale uint32) time.Duration {
	const day = 24 * 60 * 60
	if scale == 0 {
		return 0
	}
	seconds, rest := units/uint64(scale), units%uint64(scale)
	if seconds >= day {
		return day * time.Second
	}
	return time.Duration(seconds)*time.Second + time.Duration(rest*uint64(time.Second)/uint64(scale))
}

// readTrack reads boxes of a track, and those in them.
func (m *movie) readTrack(t *track, b []byte) error {
	return eachBox(b, func(kind string, b []byte) (err error) {
		switch kind {
		case "mdia", "minf", "stbl":
			return m.readTrack(t, b)
		case "tkhd":
			return t.readHeader(b)
		case "mdhd":
			t.scale, t.units, err = clock(b)
			return err
		case "hdlr":
			if len(b) < 12 {
				return brokenBox()
			}
			t.video = string(b[8:12]) == "vide"
		case "stsd":
			// Of a video the first entry has its size.
			if len(b) >= 44 {
				t.width, t.height = int(binary.BigEndian.Uint16(b[40:])), int(binary.BigEndian.Uint16(b[42:]))
			}
		case "stsz":
			return m.readSizes(b)
		case "stco", "co64":
			return m.readOffsets(kind, b)
		}
		return nil
	})
}

func (t *track) readHeader(b []byte) error {
	id, matrix := 12, 40
	if len(b) > 0 && b[0] == 1 {
		id, matrix = 20, 52
	}
	if len(b) < matrix+44 {
		return brokenBox()
	}
	t.id = binary.BigEndian.Uint32(b[id:])
	at := func(i int) uint32 { return binary.BigEndian.Uint32(b[matrix+4*i:]) }
	t.turned = at(0) == 0 && at(4) == 0 && at(1) != 0 && at(3) != 0
	return nil
}

// readSizes adds what samples have.
func (m *movie) readSizes(b []byte) error {
	if len(b) < 12 {
		return brokenBox()
	}
	each, count := uint64(binary.BigEndian.Uint32(b[4:])), uint64(binary.BigEndian.Uint32(b[8:]))
	if each != 0 {
		m.samples = sum(m.samples, each*count)
		return nil
	}
	if b = b[12:]; uint64(len(b)) < 4*count {
		return brokenBox()
	}
	for ; count > 0; count-- {
		m.samples = sum(m.samples, uint64(binary.BigEndian.Uint32(b)))
		b = b[4:]
	}
	return nil
}

// readOffsets finds the last place at which samples are.
func (m *movie) readOffsets(kind string, b []byte) error {
	width := 4
	if kind == "co64" {
		width = 8
	}
	if len(b) < 8 {
		return brokenBox()
	}
	count := uint64(binary.BigEndian.Uint32(b[4:]))
	if b = b[8:]; uint64(len(b)) < uint64(width)*count {
		return brokenBox()
	}
	for ; count > 0; count-- {
		at := uint64(binary.BigEndian.Uint32(b))
		if width == 8 {
			at = binary.BigEndian.Uint64(b)
		}
		m.furthest = max(m.furthest, at)
		b = b[width:]
	}
	return nil
}

// readFragment adds how long the samples of a fragment are.
func (m *movie) readFragment(b []byte) error {
	var id uint32
	var each uint64
	return eachBox(b, func(kind string, b []byte) error {
		if kind != "tfhd" && kind != "trun" {
			return nil
		}
		if len(b) < 8 {
			return brokenBox()
		}
		flags := binary.BigEndian.Uint32(b) & 0xffffff
		if kind == "tfhd" {
			id = binary.BigEndian.Uint32(b[4:])
			each = m.defaults[id]
			at := 8 + 8*int(flags&1) + 4*int(flags>>1&1)
			if flags&8 == 0 {
				return nil
			}
			if len(b) < at+4 {
				return brokenBox()
			}
			each = uint64(binary.BigEndian.Uint32(b[at:]))
			return nil
		}
		if _, known := m.defaults[id]; !known {
			return nil
		}
		count := uint64(binary.BigEndian.Uint32(b[4:]))
		const hasLength = 0x100
		if flags&hasLength == 0 {
			m.fragments[id] = sum(m.fragments[id], count*each)
			return nil
		}
		at := 8 + 4*int(flags&1) + 4*int(flags>>2&1)
		width := 0
		for field := uint32(hasLength); field <= 0x800; field <<= 1 {
			if flags&field != 0 {
				width += 4
			}
		}
		if len(b) < at || uint64(len(b)-at) < uint64(width)*count {
			return brokenBox()
		}
		for b = b[at:]; count > 0; count-- {
			m.fragments[id] = sum(m.fragments[id], uint64(binary.BigEndian.Uint32(b)))
			b = b[width:]
		}
		return nil
	})
}

// found is the first video track, as it is shown.
func (m *movie) found() (Found, error) {
	for _, t := range m.tracks {
		if !t.video || t.width == 0 || t.height == 0 {
			continue
		}
		f := Found{Width: t.width, Height: t.height, Duration: max(m.length, length(t.units, t.scale), length(m.fragments[t.id], t.scale))}
		if t.turned {
			f.Width, f.Height = f.Height, f.Width
		}
		return f, nil
	}
	return Found{}, invalid("the MP4 has no video track")
}
