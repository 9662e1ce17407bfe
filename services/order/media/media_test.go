package media_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"image"
	"image/color"
	"image/gif"
	"image/png"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/blobs"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/media"
)

// newStore is a store in a folder.
func newStore(t *testing.T) (store *media.Store, kept *blobs.Store, folder string) {
	t.Helper()
	folder = t.TempDir()
	kept, err := blobs.Open(t.Context(), "file://"+folder, blobs.Limits{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, kept.Close()) })
	store, err = media.New(kept, media.DefaultLimits().Memory)
	require.NoError(t, err)
	return store, kept, folder
}

func put(t *testing.T, kept *blobs.Store, content []byte) string {
	t.Helper()
	info, err := kept.Put(t.Context(), bytes.NewReader(content), blobs.Expect{})
	require.NoError(t, err)
	return info.Sum.String()
}

// read returns a blob and its media type.
func read(t *testing.T, kept *blobs.Store, name string) ([]byte, string) {
	t.Helper()
	sum, err := blobs.ParseSum(name)
	require.NoError(t, err)
	info, err := kept.Stat(t.Context(), sum)
	require.NoError(t, err)
	r, err := kept.Open(t.Context(), sum, 0, -1)
	require.NoError(t, err)
	defer r.Close()
	content, err := io.ReadAll(r)
	require.NoError(t, err)
	return content, info.MediaType
}

// drawn is a thumbnail that is kept.
func drawn(t *testing.T, kept *blobs.Store, name string) image.Image {
	t.Helper()
	content, mediaType := read(t, kept, name)
	require.Equal(t, "image/png", mediaType)
	m, err := png.Decode(bytes.NewReader(content))
	require.NoError(t, err)
	return m
}

// requireColor compares roughly.
func requireColor(t *testing.T, want color.RGBA, m image.Image, x, y int) {
	t.Helper()
	r, g, b, _ := m.At(x, y).RGBA()
	near := func(a uint8, b uint32) bool { d := int(a) - int(b>>8); return d > -30 && d < 30 }
	require.True(t, near(want.R, r) && near(want.G, g) && near(want.B, b), "%v is not %v", m.At(x, y), want)
}

var (
	red   = color.RGBA{R: 0xff, A: 0xff}
	green = color.RGBA{G: 0xff, A: 0xff}
	blue  = color.RGBA{B: 0xff, A: 0xff}
)

func TestLook(t *testing.T) {
	store, kept, folder := newStore(t)
	name := put(t, kept, encoded(t, "image/jpeg", halves(3000, 1000)))
	found, err := store.Look(t.Context(), name)
	require.NoError(t, err)
	require.Equal(t, order.Contents{SHA256: name, MediaType: "image/jpeg", Width: 3000, Height: 1000, Thumbnail: found.Thumbnail}, found)
	small := drawn(t, kept, found.Thumbnail)
	require.Equal(t, image.Rect(0, 0, 320, 106), small.Bounds())
	requireColor(t, red, small, 2, 50)
	requireColor(t, red, small, 150, 50)
	requireColor(t, blue, small, 170, 50)
	requireColor(t, blue, small, 317, 50)
	again, err := store.Look(t.Context(), name)
	require.NoError(t, err)
	require.Equal(t, found, again)

	t.Run("Video", func(t *testing.T) {
		name := put(t, kept, file(t, "plain.webm"))
		found, err := store.Look(t.Context(), name)
		require.NoError(t, err)
		require.InDelta(t, 2.0, found.Duration.Seconds(), 0.05)
		found.Duration = 0
		require.Equal(t, order.Contents{SHA256: name, MediaType: "video/webm", Width: 64, Height: 48}, found)
	})
	t.Run("Small", func(t *testing.T) {
		found, err := store.Look(t.Context(), put(t, kept, encoded(t, "image/png", halves(10, 7))))
		require.NoError(t, err)
		require.Equal(t, image.Rect(0, 0, 10, 7), drawn(t, kept, found.Thumbnail).Bounds())
	})
	t.Run("Line", func(t *testing.T) {
		found, err := store.Look(t.Context(), put(t, kept, encoded(t, "image/png", halves(16_384, 1))))
		require.NoError(t, err)
		require.Equal(t, image.Rect(0, 0, 320, 1), drawn(t, kept, found.Thumbnail).Bounds())
	})
	// The first picture of a GIF may be a part of it.
	t.Run("Part", func(t *testing.T) {
		part := image.NewPaletted(image.Rect(50, 0, 100, 50), color.Palette{red})
		var out bytes.Buffer
		require.NoError(t, gif.EncodeAll(&out, &gif.GIF{Image: []*image.Paletted{part}, Delay: []int{1}, Config: image.Config{Width: 100, Height: 100, ColorModel: part.Palette}}))
		found, err := store.Look(t.Context(), put(t, kept, out.Bytes()))
		require.NoError(t, err)
		require.Equal(t, [2]int{100, 100}, [2]int{found.Width, found.Height})
		small := drawn(t, kept, found.Thumbnail)
		requireColor(t, red, small, 75, 25)
		requireColor(t, color.RGBA{}, small, 25, 25)
		requireColor(t, color.RGBA{}, small, 75, 75)
	})
	t.Run("ErrMediaNotFound", func(t *testing.T) {
		for _, name := range []string{strings.Repeat("0", 64), "", "../../etc/passwd"} {
			_, err := store.Look(t.Context(), name)
			require.ErrorIs(t, err, order.ErrMediaNotFound)
		}
	})
	t.Run("ErrMediaInvalid", func(t *testing.T) {
		for _, content := range [][]byte{[]byte("a text"), pngOf(60_000, 60_000), file(t, "end.mp4")[:9000]} {
			_, err := store.Look(t.Context(), put(t, kept, content))
			require.ErrorIs(t, err, order.ErrMediaInvalid)
		}
	})
	t.Run("ErrMediaUnavailable", func(t *testing.T) {
		// Where thumbnails should go is something else.
		require.NoError(t, os.RemoveAll(folder))
		require.NoError(t, os.WriteFile(folder, nil, 0o600))
		_, err := store.Look(t.Context(), name)
		require.ErrorIs(t, err, order.ErrMediaUnavailable)
		_, err = store.PutText(t.Context(), text())
		require.ErrorIs(t, err, order.ErrMediaUnavailable)
	})
	t.Run("ErrTooLate", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), -time.Second)
		defer cancel()
		_, err := store.Look(ctx, name)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func text() order.Text {
	return order.Text{Text: "Hello <World> & all\nΓειά — Привет", Color: "#FF0000", Background: "#0000FF", SizePercent: 10, Alignment: order.Center}
}

func TestPutText(t *testing.T) {
	store, kept, _ := newStore(t)
	found, err := store.PutText(t.Context(), text())
	require.NoError(t, err)
	content, _ := read(t, kept, found.SHA256)
	require.JSONEq(t, `{"text":"Hello <World> & all\nΓειά — Привет","color":"#FF0000","background":"#0000FF","size_percent":10,"alignment":"center","bold":false}`, string(content))
	require.Equal(t, blobs.Sum(sha256.Sum256(content)).String(), found.SHA256)
	require.Equal(t, order.Contents{SHA256: found.SHA256, MediaType: "application/vnd.marquee.text+json", Thumbnail: found.Thumbnail}, found)
	var back order.Text
	require.NoError(t, json.Unmarshal(content, &back))
	require.Equal(t, text(), back)
	again, err := store.PutText(t.Context(), text())
	require.NoError(t, err)
	require.Equal(t, found, again)

	// ink is where the text is.
	ink := func(t *testing.T, change func(*order.Text)) image.Rectangle {
		t.Helper()
		o := text()
		change(&o)
		found, err := store.PutText(t.Context(), o)
		require.NoError(t, err)
		m := drawn(t, kept, found.Thumbnail)
		require.Equal(t, image.Rect(0, 0, 320, 180), m.Bounds())
		requireColor(t, blue, m, 0, 0)
		requireColor(t, blue, m, 319, 179)
		var where image.Rectangle
		for y := range 180 {
			for x := range 320 {
				if r, _, _, _ := m.At(x, y).RGBA(); r > 0x8000 {
					where = where.Union(image.Rect(x, y, x+1, y+1))
				}
			}
		}
		return where
	}
	t.Run("Center", func(t *testing.T) {
		where := ink(t, func(o *order.Text) { o.Text = "XXX\nXXX" })
		require.InDelta(t, 320, where.Min.X+where.Max.X, 4)
		require.InDelta(t, 180, where.Min.Y+where.Max.Y, 10)
		require.InDelta(t, 36-7, where.Dy(), 4, "two lines of 18 pixels, but for what is free above and below letters")
	})
	t.Run("Left", func(t *testing.T) {
		require.Less(t, ink(t, func(o *order.Text) { o.Text, o.Alignment = "XXX", order.Left }).Max.X, 100)
	})
	t.Run("Right", func(t *testing.T) {
		require.Greater(t, ink(t, func(o *order.Text) { o.Text, o.Alignment = "XXX", order.Right }).Min.X, 220)
	})
	t.Run("Large", func(t *testing.T) {
		where := ink(t, func(o *order.Text) { o.Text, o.SizePercent = "X", 100 })
		require.Greater(t, where.Dy(), 90)
	})
	t.Run("Bold", func(t *testing.T) {
		plain := ink(t, func(o *order.Text) { o.Text = "llllll" })
		bold := ink(t, func(o *order.Text) { o.Text, o.Bold = "llllll", true })
		require.Greater(t, bold.Dx(), plain.Dx())
	})
	t.Run("TooWide", func(t *testing.T) {
		where := ink(t, func(o *order.Text) { o.Text, o.SizePercent = strings.Repeat("WIDE ", 20), 50 })
		require.Greater(t, where.Dx(), 280)
	})
	t.Run("TooHigh", func(t *testing.T) {
		where := ink(t, func(o *order.Text) { o.Text, o.SizePercent = strings.TrimSuffix(strings.Repeat("X\n", 20), "\n"), 50 })
		require.Greater(t, where.Dy(), 160)
		require.Less(t, where.Dx(), 12)
	})
	t.Run("OtherLetters", func(t *testing.T) {
		require.False(t, ink(t, func(o *order.Text) { o.Text = "你好 🎉" }).Empty())
	})
}
