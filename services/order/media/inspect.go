package media

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"image"
	"io"
	"math"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/marquee-ads/marquee/services/order"
)

// Limits bound what is taken.
type Limits struct {
	// ImageSide is the most pixels that an image has each way, and ImagePixels in all.
	ImageSide   int
	ImagePixels int64
	// Frames is the most pictures that an animated GIF has, and FramePixels what all of
	// them have together.
	Frames      int
	FramePixels int64
	// VideoSide is the most pixels that a video has each way.
	VideoSide int
	// VideoLength is how long a video is at most.
	VideoLength time.Duration
	// Memory is how much looking takes at a time, in bytes: who would take more waits,
	// and an image that needs more than all of it is refused. One takes no more than
	// pixelMemory for each of its pixels.
	Memory int64
}

// DefaultLimits are those that the API tells of, with memory for all that they let in.
func DefaultLimits() Limits {
	const pixels = 64_000_000
	return Limits{
		ImageSide: 16_384, ImagePixels: pixels, Frames: 1_000, FramePixels: 512_000_000,
		VideoSide: 7_680, VideoLength: 10 * time.Minute, Memory: pixels * pixelMemory,
	}
}

// Found is what there is to know of an image or a video.
type Found struct {
	// Width and Height are in pixels, as it is shown.
	Width, Height int
	// Duration is how long a video is; 0 of an image.
	Duration time.Duration
	// Thumbnail is the image at most ThumbnailSide pixels each way. Videos have none:
	// there is no decoder for them in Go.
	Thumbnail image.Image
}

// Inspector looks into images and videos. It is safe for concurrent use.
type Inspector struct {
	limits Limits
	memory *semaphore.Weighted
}

// NewInspector makes one.
func NewInspector(limits Limits) *Inspector {
	return &Inspector{limits: limits, memory: semaphore.NewWeighted(limits.Memory)}
}

// Inspect looks into contents of size bytes, which are to be of a media type: images
// are decoded, of videos the container is read. Errors: order.ErrMediaInvalid with
// what is wrong; what r fails with, and the context's error, wrapped.
func (i *Inspector) Inspect(ctx context.Context, r io.ReadSeeker, size int64, mediaType string) (Found, error) {
	src := &source{ctx: ctx, r: r, size: size}
	found, err := i.inspect(src, mediaType)
	if src.failed != nil {
		return Found{}, fmt.Errorf("reading the contents: %w", src.failed)
	}
	return found, err
}

func (i *Inspector) inspect(src *source, mediaType string) (Found, error) {
	if f, ok := formats[mediaType]; ok {
		return i.inspectImage(src, f)
	}
	look := inspectMP4
	switch mediaType {
	case "video/mp4":
	case "video/webm":
		look = inspectWebM
	default:
		return Found{}, invalid("it is %s: an image is PNG, JPEG, GIF or WebP, a video MP4 or WebM", mediaType)
	}
	release, err := i.take(src.ctx, maxTables)
	if err != nil {
		return Found{}, err
	}
	defer release()
	found, err := look(newScanner(src))
	if err != nil {
		return Found{}, err
	}
	switch most := i.limits.VideoSide; {
	case found.Width > most || found.Height > most:
		return Found{}, invalid("the video has %d by %d pixels: the most is %d by %d", found.Width, found.Height, most, most)
	case found.Duration > i.limits.VideoLength:
		return Found{}, invalid("the video is longer than %s", i.limits.VideoLength)
	case found.Duration < time.Millisecond:
		return Found{}, invalid("the video has no length")
	}
	return found, nil
}

// take waits for memory.
func (i *Inspector) take(ctx context.Context, bytes int64) (release func(), err error) {
	bytes = min(bytes, i.limits.Memory)
	if err := i.memory.Acquire(ctx, bytes); err != nil {
		return nil, fmt.Errorf("waiting for memory to look into media: %w", err)
	}
	return func() { i.memory.Release(bytes) }, nil
}

// invalid says what is wrong with contents.
func invalid(format string, args ...any) error {
	f := *order.ErrMediaInvalid
	f.Message = "what was uploaded cannot be shown: " + fmt.Sprintf(format, args...)
	return f.WithField("content.media_sha256", "media.valid", fmt.Sprintf(format, args...))
}

func cutOff() error { return invalid("it is cut off: upload all of it") }

// source is contents that remember why they could not be read: that says nothing
// about what they are.
type source struct {
	ctx    context.Context // io.Reader has no other place for it
	r      io.ReadSeeker
	size   int64
	failed error
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		s.failed = err
		return 0, err
	}
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.failed = err
	}
	return n, err
}

func (s *source) seek(to int64) error {
	if _, err := s.r.Seek(to, io.SeekStart); err != nil {
		s.failed = err
		return err
	}
	return nil
}

// readAhead is how much is read at a time, and what is rather read than skipped.
const readAhead = 64 << 10

// scanner goes through contents once, from their beginning.
type scanner struct {
	src  *source
	b    *bufio.Reader
	at   int64
	size int64
}

func newScanner(src *source) *scanner {
	return &scanner{src: src, b: bufio.NewReaderSize(src, readAhead), size: src.size}
}

// read fills p.
func (s *scanner) read(p []byte) error {
	n, err := io.ReadFull(s.b, p)
	s.at += int64(n)
	if err != nil {
		return cutOff()
	}
	return nil
}

// maxTables bounds what is read of a video at a time: the tables of ten minutes have
// one or two million bytes.
const maxTables = 16 << 20

// readTo returns what there is up to a position.
func (s *scanner) readTo(end int64) ([]byte, error) {
	if end-s.at > maxTables {
		return nil, invalid("its tables have more than %d bytes", maxTables)
	}
	p := make([]byte, end-s.at)
	return p, s.read(p)
}

// skipTo goes on at a position, which is not before the present one.
func (s *scanner) skipTo(at int64) error {
	if at > s.size {
		return cutOff()
	}
	if at-s.at <= readAhead {
		n, err := s.b.Discard(int(at - s.at))
		s.at += int64(n)
		if err != nil {
			return cutOff()
		}
		return nil
	}
	if err := s.src.seek(at); err != nil {
		return err
	}
	s.b.Reset(s.src)
	s.at = at
	return nil
}

// sum adds without going over.
func sum(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}
