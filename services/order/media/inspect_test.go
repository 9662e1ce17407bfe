package media_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"image"
	"image/color"
	"image/draw"
	"image/gif"
	"image/jpeg"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/media"
)

func inspect(content []byte, mediaType string) (media.Found, error) {
	return media.NewInspector(media.DefaultLimits()).Inspect(context.Background(), bytes.NewReader(content), int64(len(content)), mediaType)
}

// refused makes sure that contents are refused for a reason.
func refused(t *testing.T, content []byte, mediaType, reason string) {
	t.Helper()
	_, err := inspect(content, mediaType)
	require.ErrorIs(t, err, order.ErrMediaInvalid)
	f, _ := fault.From(err)
	require.Contains(t, f.Message, reason)
	require.Len(t, f.Fields, 1)
}

// file is one that testdata/make.sh made.
func file(tb testing.TB, name string) []byte {
	tb.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(tb, err)
	return content
}

// halves is red on the left and blue on the right.
func halves(width, height int) *image.RGBA {
	m := image.NewRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			c := color.RGBA{R: 0xff, A: 0xff}
			if x >= width/2 {
				c = color.RGBA{B: 0xff, A: 0xff}
			}
			m.SetRGBA(x, y, c)
		}
	}
	return m
}

func encoded(tb testing.TB, mediaType string, m image.Image) []byte {
	tb.Helper()
	var out bytes.Buffer
	var err error
	switch mediaType {
	case "image/png":
		err = png.Encode(&out, m)
	case "image/jpeg":
		err = jpeg.Encode(&out, m, nil)
	case "image/gif":
		err = gif.Encode(&out, m, nil)
	}
	require.NoError(tb, err)
	return out.Bytes()
}

// animation is a GIF of so many pictures.
func animation(tb testing.TB, frames, width, height int) []byte {
	tb.Helper()
	g := &gif.GIF{}
	for range frames {
		g.Image = append(g.Image, image.NewPaletted(image.Rect(0, 0, width, height), color.Palette{color.Black, color.White}))
		g.Delay = append(g.Delay, 1)
	}
	var out bytes.Buffer
	require.NoError(tb, gif.EncodeAll(&out, g))
	return out.Bytes()
}

func TestInspect(t *testing.T) {
	for _, c := range []struct {
		name, mediaType string
		content         []byte
		want            media.Found // but for the thumbnail
	}{
		{"PNG", "image/png", encoded(t, "image/png", halves(700, 300)), media.Found{Width: 700, Height: 300}},
		{"JPEG", "image/jpeg", encoded(t, "image/jpeg", halves(700, 300)), media.Found{Width: 700, Height: 300}},
		{"GIF", "image/gif", encoded(t, "image/gif", halves(700, 300)), media.Found{Width: 700, Height: 300}},
		{"Animation", "image/gif", animation(t, 100, 70, 30), media.Found{Width: 70, Height: 30}},
		{"animated.gif", "image/gif", file(t, "animated.gif"), media.Found{Width: 64, Height: 48}},
		{"lossy.webp", "image/webp", file(t, "lossy.webp"), media.Found{Width: 64, Height: 48}},
		{"lossless.webp", "image/webp", file(t, "lossless.webp"), media.Found{Width: 64, Height: 48}},
		{"alpha.webp", "image/webp", file(t, "alpha.webp"), media.Found{Width: 64, Height: 48}},
		{"end.mp4", "video/mp4", file(t, "end.mp4"), media.Found{Width: 64, Height: 48, Duration: 2 * time.Second}},
		{"front.mp4", "video/mp4", file(t, "front.mp4"), media.Found{Width: 64, Height: 48, Duration: 2 * time.Second}},
		{"fragments.mp4", "video/mp4", file(t, "fragments.mp4"), media.Found{Width: 64, Height: 48, Duration: 2 * time.Second}},
		{"turned.mp4", "video/mp4", file(t, "turned.mp4"), media.Found{Width: 48, Height: 64, Duration: 2 * time.Second}},
		{"plain.webm", "video/webm", file(t, "plain.webm"), media.Found{Width: 64, Height: 48, Duration: 2 * time.Second}},
		// It says nothing about its length: the last picture begins then.
		{"live.webm", "video/webm", file(t, "live.webm"), media.Found{Width: 64, Height: 48, Duration: 1900 * time.Millisecond}},
	} {
		t.Run(c.name, func(t *testing.T) {
			found, err := inspect(c.content, c.mediaType)
			require.NoError(t, err)
			require.InDelta(t, c.want.Duration.Seconds(), found.Duration.Seconds(), 0.05)
			require.Equal(t, [2]int{c.want.Width, c.want.Height}, [2]int{found.Width, found.Height})
			if strings.HasPrefix(c.mediaType, "video/") {
				require.Nil(t, found.Thumbnail)
				return
			}
			size := found.Thumbnail.Bounds()
			require.LessOrEqual(t, max(size.Dx(), size.Dy()), media.ThumbnailSide)
		})
	}
}

// What is cut off anywhere is refused. A video that does not say how long it is may end
// between two blocks.
func TestCutOff(t *testing.T) {
	for name, content := range map[string][]byte{
		"a.png": encoded(t, "image/png", halves(70, 30)), "a.jpeg": encoded(t, "image/jpeg", halves(70, 30)), "a.gif": animation(t, 3, 70, 30),
		"lossy.webp": file(t, "lossy.webp"), "lossless.webp": file(t, "lossless.webp"), "alpha.webp": file(t, "alpha.webp"),
		"end.mp4": file(t, "end.mp4"), "front.mp4": file(t, "front.mp4"), "plain.webm": file(t, "plain.webm"),
	} {
		t.Run(name, func(t *testing.T) {
			kind := "image/"
			if e := filepath.Ext(name); e == ".mp4" || e == ".webm" {
				kind = "video/"
			}
			kind += filepath.Ext(name)[1:]
			_, err := inspect(content, kind)
			require.NoError(t, err)
			for n := range 200 {
				length := len(content) - 1 - n*(len(content)-1)/200
				_, err := inspect(content[:length], kind)
				require.ErrorIs(t, err, order.ErrMediaInvalid, "of %d bytes %d were taken for all", len(content), length)
			}
		})
	}
	t.Run("Fragments", func(t *testing.T) {
		content := file(t, "fragments.mp4")
		refused(t, content[:len(content)-1], "video/mp4", "cut off")
	})
	t.Run("Live", func(t *testing.T) {
		content := file(t, "live.webm")
		refused(t, content[:len(content)-1], "video/webm", "cut off")
	})
	// The last box goes to the end, wherever that is: what is missing the tables say.
	t.Run("OpenEnd", func(t *testing.T) {
		content := file(t, "front.mp4")
		at := bytes.Index(content, []byte("mdat")) - 4
		copy(content[at:], []byte{0, 0, 0, 0})
		_, err := inspect(content, "video/mp4")
		require.NoError(t, err)
		refused(t, content[:len(content)-1], "video/mp4", "cut off")
	})
}

// held is a JPEG that says how the camera was held: red in its first corner, green in
// the second.
func held(t testing.TB, order binary.AppendByteOrder, mark string, orientation uint16) []byte {
	t.Helper()
	tiff := order.AppendUint32([]byte("Exif\x00\x00"+mark), 8)
	tiff = order.AppendUint16(tiff, 2)
	tiff = append(tiff, make([]byte, 12)...)
	tiff = order.AppendUint16(order.AppendUint16(tiff, 0x0112), 3)
	tiff = order.AppendUint16(order.AppendUint16(order.AppendUint32(tiff, 1), orientation), 0)
	m := image.NewRGBA(image.Rect(0, 0, 64, 32))
	draw.Draw(m, m.Rect, image.NewUniform(blue), image.Point{}, draw.Src)
	draw.Draw(m, image.Rect(0, 0, 16, 16), image.NewUniform(red), image.Point{}, draw.Src)
	draw.Draw(m, image.Rect(48, 0, 64, 16), image.NewUniform(green), image.Point{}, draw.Src)
	content := encoded(t, "image/jpeg", m)
	segment := append(binary.BigEndian.AppendUint16([]byte{0xff, 0xe1}, uint16(len(tiff)+2)), tiff...)
	return slices.Concat(content[:2], segment, content[2:])
}

// An image is as wide and as high as browsers show it, and so is its thumbnail.
func TestOrientation(t *testing.T) {
	const topLeft, topRight, bottomRight, bottomLeft = 0, 1, 2, 3
	for orientation, want := range [][2]int{
		{topLeft, topRight}, {topLeft, topRight}, {topRight, topLeft}, {bottomRight, bottomLeft}, {bottomLeft, bottomRight},
		{topLeft, bottomLeft}, {topRight, bottomRight}, {bottomRight, topRight}, {bottomLeft, topLeft}, {topLeft, topRight},
	} {
		for mark, order := range map[string]binary.AppendByteOrder{"II*\x00": binary.LittleEndian, "MM\x00*": binary.BigEndian} {
			found, err := inspect(held(t, order, mark, uint16(orientation)), "image/jpeg")
			require.NoError(t, err)
			width, height := 64, 32
			if orientation >= 5 && orientation <= 8 {
				width, height = 32, 64
			}
			require.Equal(t, [2]int{width, height}, [2]int{found.Width, found.Height}, orientation)
			require.Equal(t, image.Rect(0, 0, width, height), found.Thumbnail.Bounds())
			corners := []image.Point{{5, 5}, {width - 6, 5}, {width - 6, height - 6}, {5, height - 6}}
			requireColor(t, red, found.Thumbnail, corners[want[0]].X, corners[want[0]].Y)
			requireColor(t, green, found.Thumbnail, corners[want[1]].X, corners[want[1]].Y)
		}
	}
	whole := held(t, binary.LittleEndian, "II*\x00", 6)
	for n := range 40 {
		broken := bytes.Clone(whole)
		broken[2+n] ^= 0xff
		_, err := inspect(broken, "image/jpeg")
		if err != nil {
			require.ErrorIs(t, err, order.ErrMediaInvalid)
		}
	}
}

// pngOf is a PNG of a size that has no pixels.
func pngOf(width, height uint32) []byte {
	chunk := append([]byte("IHDR"), binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, width), height)...)
	chunk = append(chunk, 8, 2, 0, 0, 0)
	content := append([]byte("\x89PNG\r\n\x1a\n"), 0, 0, 0, 13)
	content = append(content, chunk...)
	return binary.BigEndian.AppendUint32(content, crc32.ChecksumIEEE(chunk))
}

// allocated is how many bytes a call allocates, of what anybody does meanwhile the rest.
func allocated(call func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	call()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestRefused(t *testing.T) {
	picture := encoded(t, "image/png", halves(70, 30))
	archive := append([]byte("PK\x03\x04"), bytes.Repeat([]byte{0}, 100)...)
	page := []byte("<script>alert(1)</script>")
	t.Run("HugeDimensions", func(t *testing.T) {
		for _, size := range [][2]uint32{{20_000, 1}, {1, 16_385}, {60_000, 60_000}, {8_001, 8_000}, {math.MaxInt32, math.MaxInt32}} {
			took := allocated(func() {
				_, err := inspect(pngOf(size[0], size[1]), "image/png")
				require.ErrorIs(t, err, order.ErrMediaInvalid)
			})
			require.Less(t, took, uint64(1<<20))
		}
		refused(t, pngOf(8_001, 8_000), "image/png", "8001 by 8000 pixels: the most is 64000000 in all")
		refused(t, pngOf(16_385, 1), "image/png", "the most is 16384 each way")
	})
	// Its few bytes would be 40 megapixels a hundred times.
	t.Run("GIFBomb", func(t *testing.T) {
		content := animation(t, 2, 6400, 6400)
		frame := content[bytes.LastIndexByte(content, 0x2c) : len(content)-1]
		content = append(content[:len(content)-1:len(content)-1], bytes.Repeat(frame, 98)...)
		took := allocated(func() { refused(t, append(content, 0x3b), "image/gif", "more than 512000000 pixels together") })
		require.Less(t, took, uint64(100<<20), "one picture has 41 MB")
	})
	t.Run("GIFOfManyPictures", func(t *testing.T) {
		refused(t, animation(t, 1001, 1, 1), "image/gif", "more than 1000 pictures")
	})
	t.Run("GIFPictureOutside", func(t *testing.T) {
		content := animation(t, 2, 70, 30)
		at := bytes.LastIndexByte(content, 0x2c)
		binary.LittleEndian.PutUint16(content[at+1:], 1)
		refused(t, content, "image/gif", "larger than the GIF")
	})
	t.Run("Lies", func(t *testing.T) {
		refused(t, picture, "image/jpeg", "no JPEG that can be decoded")
		refused(t, encoded(t, "image/jpeg", halves(70, 30)), "image/png", "no PNG that can be decoded")
		refused(t, file(t, "plain.webm"), "video/mp4", "MP4")
		refused(t, file(t, "end.mp4"), "video/webm", "WebM")
		refused(t, file(t, "other.mkv"), "video/webm", "another kind of Matroska")
		refused(t, []byte("hello"), "text/plain; charset=utf-8", "an image is PNG, JPEG, GIF or WebP, a video MP4 or WebM")
	})
	t.Run("SomethingBehind", func(t *testing.T) {
		for _, more := range [][]byte{archive, page, {0}} {
			refused(t, append(bytes.Clone(picture), more...), "image/png", "something else is behind")
			refused(t, append(animation(t, 2, 70, 30), more...), "image/gif", "something else is behind")
			refused(t, append(file(t, "lossy.webp"), more...), "image/webp", "something else is behind")
			refused(t, append(file(t, "plain.webm"), more...), "video/webm", "something else is behind")
			refused(t, append(file(t, "end.mp4"), more...), "video/mp4", "cut off")
		}
		_, err := inspect(append(encoded(t, "image/jpeg", halves(70, 30)), encoded(t, "image/jpeg", halves(7, 3))...), "image/jpeg")
		require.NoError(t, err, "cameras write previews behind a JPEG")
	})
	t.Run("Animated", func(t *testing.T) {
		refused(t, file(t, "animated.png"), "image/png", "animated PNG")
		refused(t, file(t, "animated.webp"), "image/webp", "animated WebP")
	})
	t.Run("NoVideo", func(t *testing.T) {
		refused(t, file(t, "sound.mp4"), "video/mp4", "no video track")
		refused(t, file(t, "sound.webm"), "video/webm", "no video track")
	})
	t.Run("Damaged", func(t *testing.T) {
		content := bytes.Clone(picture)
		content[len(content)/2] ^= 0xff
		refused(t, content, "image/png", "no PNG that can be decoded")
	})
	t.Run("Nothing", func(t *testing.T) {
		for _, mediaType := range []string{"image/png", "image/jpeg", "image/gif", "image/webp", "video/mp4", "video/webm"} {
			_, err := inspect(nil, mediaType)
			require.ErrorIs(t, err, order.ErrMediaInvalid, mediaType)
		}
	})
}

// patched is a video in which something was written behind the first of a mark.
func patched(t *testing.T, name, mark string, behind int, with ...byte) []byte {
	t.Helper()
	content := file(t, name)
	at := bytes.Index(content, []byte(mark))
	require.Positive(t, at)
	copy(content[at+len(mark)+behind:], with)
	return content
}

func TestHostileVideos(t *testing.T) {
	ones := []byte{0xff, 0xff, 0xff, 0xff}
	for name, content := range map[string][]byte{
		"width":             patched(t, "front.mp4", "stsd", 40, 0xff, 0xff),
		"samples":           patched(t, "front.mp4", "stsz", 8, ones...),
		"samples of a size": patched(t, "front.mp4", "stsz", 4, append(ones, ones...)...),
		"chunks":            patched(t, "front.mp4", "stco", 4, ones...),
		"chunk behind":      patched(t, "front.mp4", "stco", 8, ones...),
		"child's size":      patched(t, "front.mp4", "trak", 0, ones...),
		"no size":           patched(t, "front.mp4", "moov", -8, 0, 0, 0, 7),
		"run's samples":     patched(t, "fragments.mp4", "trun", 4, ones...),
		"two movies":        append(file(t, "front.mp4"), file(t, "front.mp4")...),
		"no movie":          patched(t, "front.mp4", "moov", -4, []byte("free")...),
		"not a video":       patched(t, "front.mp4", "vide", -4, []byte("text")...),
		"a day":             patched(t, "front.mp4", "mvhd", 16, 0x7f),
	} {
		t.Run(name, func(t *testing.T) {
			took := allocated(func() {
				_, err := inspect(content, "video/mp4")
				require.ErrorIs(t, err, order.ErrMediaInvalid)
			})
			require.Less(t, took, uint64(1<<20))
		})
	}
	t.Run("ManyTracks", func(t *testing.T) {
		content := binary.BigEndian.AppendUint32([]byte("\x00\x00\x00\x08ftyp"), 8+101*8)
		content = append(append(content, "moov"...), bytes.Repeat([]byte("\x00\x00\x00\x08trak"), 101)...)
		refused(t, content, "video/mp4", "more than 100 tracks")
	})
	t.Run("LongTables", func(t *testing.T) {
		// A movie box of 17 MB that is there.
		content := binary.BigEndian.AppendUint32([]byte("\x00\x00\x00\x08ftyp"), 17<<20)
		content = append(append(content, "moov"...), make([]byte, 17<<20-8)...)
		took := allocated(func() { refused(t, content, "video/mp4", "its tables have more than") })
		require.Less(t, took, uint64(1<<20))
	})
	t.Run("WebMLength", func(t *testing.T) {
		forever := binary.BigEndian.AppendUint64(nil, math.Float64bits(math.Inf(1)))
		refused(t, patched(t, "plain.webm", "\x44\x89\x88", 0, forever...), "video/webm", "longer than 10m0s")
		none := binary.BigEndian.AppendUint64(nil, math.Float64bits(math.NaN()))
		refused(t, patched(t, "plain.webm", "\x44\x89\x88", 0, none...), "video/webm", "no length")
	})
	t.Run("WebMBroken", func(t *testing.T) {
		refused(t, patched(t, "plain.webm", "\xb0\x81\x40\xba\x81", -1, 0xff), "video/webm", "broken")
	})
}

// failing is a store that fails after so many bytes.
type failing struct {
	io.ReadSeeker
	left int
	err  error
}

func (f *failing) Read(p []byte) (int, error) {
	if f.left <= 0 {
		return 0, f.err
	}
	n, err := f.ReadSeeker.Read(p[:min(len(p), f.left)])
	f.left -= n
	return n, err
}

// That contents cannot be read says nothing about them.
func TestStoreFails(t *testing.T) {
	away := errors.New("the store is away")
	for mediaType, content := range map[string][]byte{
		"image/png": encoded(t, "image/png", halves(70, 30)), "image/jpeg": encoded(t, "image/jpeg", halves(70, 30)),
		"image/gif": animation(t, 3, 70, 30), "image/webp": file(t, "lossy.webp"), "video/mp4": file(t, "end.mp4"), "video/webm": file(t, "plain.webm"),
	} {
		for _, after := range []int{0, 10, len(content) / 2} {
			_, err := media.NewInspector(media.DefaultLimits()).Inspect(t.Context(), &failing{bytes.NewReader(content), after, away}, int64(len(content)), mediaType)
			require.ErrorIs(t, err, away, mediaType)
			require.NotErrorIs(t, err, order.ErrMediaInvalid)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	content := file(t, "end.mp4")
	_, err := media.NewInspector(media.DefaultLimits()).Inspect(ended, bytes.NewReader(content), int64(len(content)), "video/mp4")
	require.ErrorIs(t, err, context.Canceled)
}

// gate holds back who reads from the beginning again.
type gate struct {
	io.ReadSeeker
	reached, open chan struct{}
	once          sync.Once
}

func (g *gate) Seek(offset int64, whence int) (int64, error) {
	g.once.Do(func() {
		close(g.reached)
		<-g.open
	})
	return g.ReadSeeker.Seek(offset, whence)
}

// Looking waits for memory that others have, for as long as its caller does.
func TestMemory(t *testing.T) {
	limits := media.DefaultLimits()
	limits.Memory = 700 * 300 * 24
	i := media.NewInspector(limits)
	content := encoded(t, "image/jpeg", halves(700, 300))
	g := &gate{ReadSeeker: bytes.NewReader(content), reached: make(chan struct{}), open: make(chan struct{})}
	first := make(chan error, 1)
	go func() {
		_, err := i.Inspect(t.Context(), g, int64(len(content)), "image/jpeg")
		first <- err
	}()
	<-g.reached
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := i.Inspect(ctx, bytes.NewReader(content), int64(len(content)), "image/jpeg")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	close(g.open)
	require.NoError(t, <-first)
	_, err = i.Inspect(t.Context(), bytes.NewReader(content), int64(len(content)), "image/jpeg")
	require.NoError(t, err, "what the first had came back")
	larger := encoded(t, "image/jpeg", halves(702, 300))
	_, err = i.Inspect(t.Context(), bytes.NewReader(larger), int64(len(larger)), "image/jpeg")
	require.ErrorIs(t, err, order.ErrMediaInvalid)
	require.ErrorContains(t, err, "the image has 702 by 300 pixels: to look into a JPEG there is memory for 210000 in all")
}
