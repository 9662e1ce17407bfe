package order_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"image"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/blobs"
	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/media"
)

// gallery is a market with media.
type gallery struct {
	*market
	kept   *blobs.Store
	folder string
}

func newGallery(t *testing.T) *gallery {
	t.Helper()
	g := &gallery{market: newMarket(t), folder: t.TempDir()}
	kept, err := blobs.Open(t.Context(), "file://"+g.folder, blobs.Limits{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, kept.Close()) })
	g.kept = kept
	store, err := media.New(kept, media.DefaultLimits().Memory)
	require.NoError(t, err)
	g.Service = order.New(g.store, order.Outside{Media: store}, g.now, rand.Reader)
	return g
}

func (m *market) now() time.Time { return time.Unix(0, m.clock.Load()) }

// upload keeps contents as the door for media does.
func (g *gallery) upload(t *testing.T, content []byte) string {
	t.Helper()
	info, err := g.kept.Put(t.Context(), bytes.NewReader(content), blobs.Expect{})
	require.NoError(t, err)
	return info.Sum.String()
}

func picture(t *testing.T, width, height int) []byte {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, png.Encode(&out, image.NewGray(image.Rect(0, 0, width, height))))
	return out.Bytes()
}

// video is two seconds long.
func video(t *testing.T) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("media", "testdata", "end.mp4"))
	require.NoError(t, err)
	return content
}

// says is a text as content.
func says(text string) order.Content { return order.Content{Text: &order.Text{Text: text}} }

// made is a creative that says something.
func (g *gallery) made(t *testing.T, organisationID string, content order.Content) order.Creative {
	t.Helper()
	g.clock.Add(int64(time.Millisecond))
	c, err := g.CreateCreative(t.Context(), ada, g.requestID(), organisationID, "a creative", content)
	require.NoError(t, err)
	return c
}

// edited is the creative with other content.
func (g *gallery) edited(t *testing.T, c order.Creative, content order.Content) order.Creative {
	t.Helper()
	g.clock.Add(int64(time.Millisecond))
	c, err := g.UpdateCreative(t.Context(), c.OrganisationID, c.ID, c.Title, content, 0)
	require.NoError(t, err)
	return c
}

func TestCreateCreative(t *testing.T) {
	g := newGallery(t)
	c, err := g.CreateCreative(t.Context(), ada, "request-hello", buyer, " Hello ", says("Hello\r\nWorld"))
	require.NoError(t, err)
	require.Regexp(t, `^crv_[0-9A-Z]{26}$`, c.ID)
	require.Equal(t, order.Creative{ID: c.ID, OrganisationID: buyer, Title: "Hello", Versions: c.Versions, CreateTime: g.now().UTC()}, c)
	v := c.Newest()
	require.Equal(t, order.Version{
		Number: 1, CreateTime: c.CreateTime, Contents: order.Contents{SHA256: v.SHA256, MediaType: order.TextType, Thumbnail: v.Thumbnail},
		Text: &order.Text{Text: "Hello\nWorld", Color: "#FFFFFF", Background: "#000000", SizePercent: 10, Alignment: order.Center},
	}, v)
	require.Len(t, v.Thumbnail, 64)
	found, err := g.FindCreative(t.Context(), buyer, c.ID)
	require.NoError(t, err)
	require.Equal(t, c, found)

	t.Run("Image", func(t *testing.T) {
		name := g.upload(t, picture(t, 1920, 1080))
		v := g.made(t, buyer, order.Content{SHA256: name}).Newest()
		require.Nil(t, v.Text)
		require.Equal(t, order.Contents{SHA256: name, MediaType: "image/png", Width: 1920, Height: 1080, Thumbnail: v.Thumbnail}, v.Contents)
		require.Len(t, v.Thumbnail, 64)
	})
	t.Run("Video", func(t *testing.T) {
		name := g.upload(t, video(t))
		v := g.made(t, buyer, order.Content{SHA256: name}).Newest()
		require.InDelta(t, 2.0, v.Duration.Seconds(), 0.05)
		v.Duration = 0
		require.Equal(t, order.Contents{SHA256: name, MediaType: "video/mp4", Width: 64, Height: 48}, v.Contents)
	})
	t.Run("Repeat", func(t *testing.T) {
		again, err := g.CreateCreative(t.Context(), ada, "request-hello", buyer, "Hello", says("Hello\nWorld"))
		require.NoError(t, err)
		require.Equal(t, c, again)
		_, err = g.CreateCreative(t.Context(), ada, "request-hello", buyer, "Hello", says("Bye"))
		refused(t, err, order.ErrRequestIDReused, "request_id")
		_, err = g.CreateCreative(t.Context(), ada, "request-hello", another, "Hello", says("Hello\nWorld"))
		refused(t, err, order.ErrRequestIDReused, "request_id")
		other, err := g.CreateCreative(t.Context(), "acc_bob", "request-hello", buyer, "Hello", says("Hello\nWorld"))
		require.NoError(t, err)
		require.NotEqual(t, c.ID, other.ID, "somebody else's request ids are others")
	})
	t.Run("RepeatAtOnce", func(t *testing.T) {
		const at = 6
		ids, errs := make([]string, at), make([]error, at)
		var all sync.WaitGroup
		for n := range at {
			all.Go(func() {
				made, err := g.CreateCreative(t.Context(), ada, "request-at-once", buyer, "x", says("at once"))
				ids[n], errs[n] = made.ID, err
			})
		}
		all.Wait()
		for n := range at {
			require.NoError(t, errs[n])
			require.Equal(t, ids[0], ids[n])
		}
	})
	t.Run("ErrContent", func(t *testing.T) {
		_, err := g.CreateCreative(t.Context(), ada, g.requestID(), buyer, "  ", says("x"))
		refused(t, err, order.ErrContent, "title")
	})
	t.Run("ErrMediaNotFound", func(t *testing.T) {
		_, err := g.CreateCreative(t.Context(), ada, "request-later", buyer, "x", order.Content{SHA256: strings.Repeat("0", 64)})
		refused(t, err, order.ErrMediaNotFound, "")
		name := g.upload(t, picture(t, 3, 3))
		_, err = g.CreateCreative(t.Context(), ada, "request-later", buyer, "x", order.Content{SHA256: name})
		require.NoError(t, err, "what failed was not remembered")
	})
	t.Run("ErrMediaInvalid", func(t *testing.T) {
		for _, content := range [][]byte{[]byte("a text"), picture(t, 16_385, 1), picture(t, 100, 100)[:70], video(t)[:5000]} {
			_, err := g.CreateCreative(t.Context(), ada, g.requestID(), buyer, "x", order.Content{SHA256: g.upload(t, content)})
			refused(t, err, order.ErrMediaInvalid, "content.media_sha256")
		}
	})
	t.Run("ErrTooManyCreatives", func(t *testing.T) {
		g.exec(t, `INSERT INTO creatives (creative_id, organisation_id, title, version, create_time)
			SELECT 'crv_' || lpad(n::text, 26, '0'), $1, 'x', 1, now() FROM generate_series(1, $2::integer) AS n`, another, order.MaxCreatives-1)
		last := g.made(t, another, says("the last"))
		_, err := g.CreateCreative(t.Context(), ada, g.requestID(), another, "x", says("one more"))
		refused(t, err, order.ErrTooManyCreatives, "")
		_, err = g.TakeDownCreative(t.Context(), another, last.ID)
		require.NoError(t, err)
		g.made(t, another, says("one more"))
	})
	t.Run("ErrMediaUnavailable", func(t *testing.T) {
		require.NoError(t, os.RemoveAll(g.folder))
		require.NoError(t, os.WriteFile(g.folder, nil, 0o600))
		_, err := g.CreateCreative(t.Context(), ada, "request-away", buyer, "x", says("never seen"))
		f := refused(t, err, order.ErrMediaUnavailable, "")
		require.Positive(t, f.RetryAfter)
		again, err := g.CreateCreative(t.Context(), ada, "request-hello", buyer, "Hello", says("Hello\nWorld"))
		require.NoError(t, err, "a repeat needs no media")
		require.Equal(t, c, again)
		g.Service = order.New(g.store, order.Outside{}, g.now, rand.Reader)
		_, err = g.CreateCreative(t.Context(), ada, g.requestID(), buyer, "x", says("x"))
		f = refused(t, err, order.ErrMediaUnavailable, "")
		require.Contains(t, f.Message, "--media-url")
	})
}

func TestText(t *testing.T) {
	g := newGallery(t)
	for name, c := range map[string]struct{ text, rule string }{
		"Tab":            {"a\tb", "text.characters"},
		"Null":           {"a\x00b", "text.characters"},
		"Return":         {"a\rb", "text.characters"},
		"Escape":         {"\x1b[31mred", "text.characters"},
		"C1":             {"a\u0085b", "text.characters"},
		"LineSeparator":  {"a\u2028b", "text.characters"},
		"NotUnicode":     {"a\xff", "text.utf8"},
		"Override":       {"a\u202egnp", "text.bidirectional"},
		"Isolate":        {"a\u2066b", "text.bidirectional"},
		"Mark":           {"a\u200fb", "text.bidirectional"},
		"TooLong":        {strings.Repeat("x", 501), "text.length"},
		"TooManyLines":   {strings.Repeat("x\n", 20) + "x", "text.lines"},
		"Nothing":        {"", "text.visible"},
		"Spaces":         {" \n\u00a0\u3000 ", "text.visible"},
		"ZeroWidthSpace": {"\u200b\ufeff", "text.visible"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := g.CreateCreative(t.Context(), ada, g.requestID(), buyer, "x", says(c.text))
			f := refused(t, err, order.ErrContent, "content.text.text")
			require.Equal(t, c.rule, f.Fields[0].Rule)
		})
	}
	for name, text := range map[string]string{
		"Longest": strings.Repeat("日", 500), "Lines": strings.Repeat("x\n", 19) + "x", "Families": "👨‍👩‍👧 🏴󠁧󠁢󠁳󠁣󠁴󠁿", "Persian": "می\u200cخواهم", "Arabic": "مرحبا", "Markup": `<b>"&\u0041`,
	} {
		t.Run(name, func(t *testing.T) {
			c := g.made(t, buyer, says(text))
			require.Equal(t, text, c.Newest().Text.Text)
			found, err := g.FindCreative(t.Context(), buyer, c.ID)
			require.NoError(t, err)
			require.Equal(t, c, found)
		})
	}
	// However it is said, the same text is the same document.
	t.Run("Same", func(t *testing.T) {
		written := order.Text{Text: "a\nb", Color: "#ffffff", Background: "#000000", SizePercent: 10, Alignment: order.Center}
		first := g.made(t, buyer, says("a\r\nb"))
		require.Equal(t, first.Newest().SHA256, g.made(t, buyer, order.Content{Text: &written}).Newest().SHA256)
		written.Bold = true
		require.NotEqual(t, first.Newest().SHA256, g.made(t, buyer, order.Content{Text: &written}).Newest().SHA256)
	})
}

func TestUpdateCreative(t *testing.T) {
	g := newGallery(t)
	c := g.made(t, buyer, says("one"))
	g.clock.Add(int64(time.Hour))
	second, err := g.UpdateCreative(t.Context(), buyer, c.ID, "Two", says("two"), 1)
	require.NoError(t, err)
	require.Equal(t, "Two", second.Title)
	require.Equal(t, 2, second.Newest().Number)
	require.Equal(t, "two", second.Newest().Text.Text)
	require.Equal(t, g.now().UTC(), second.Newest().CreateTime)
	found, err := g.FindCreative(t.Context(), buyer, c.ID)
	require.NoError(t, err)
	require.Equal(t, []order.Version{second.Newest(), c.Newest()}, found.Versions)

	t.Run("Same", func(t *testing.T) {
		same, err := g.UpdateCreative(t.Context(), buyer, c.ID, "Two", says("two"), 1)
		require.NoError(t, err, "a repeat of what made the version")
		require.Equal(t, second, same)
	})
	t.Run("Title", func(t *testing.T) {
		renamed, err := g.UpdateCreative(t.Context(), buyer, c.ID, "Another", says("two"), 2)
		require.NoError(t, err)
		require.Equal(t, "Another", renamed.Title)
		require.Equal(t, second.Newest(), renamed.Newest())
	})
	t.Run("ErrCreativeChanged", func(t *testing.T) {
		for _, version := range []int{1, 3} {
			_, err := g.UpdateCreative(t.Context(), buyer, c.ID, "Two", says("three"), version)
			refused(t, err, order.ErrCreativeChanged, "")
		}
	})
	t.Run("Media", func(t *testing.T) {
		name := g.upload(t, picture(t, 10, 10))
		third, err := g.UpdateCreative(t.Context(), buyer, c.ID, "Two", order.Content{SHA256: name}, 2)
		require.NoError(t, err)
		require.Equal(t, "image/png", third.Newest().MediaType)
		require.Nil(t, third.Newest().Text)
		_, err = g.UpdateCreative(t.Context(), buyer, c.ID, "Two", order.Content{SHA256: strings.Repeat("1", 64)}, 0)
		refused(t, err, order.ErrMediaNotFound, "")
	})
	t.Run("ErrCreativeNotFound", func(t *testing.T) {
		_, err := g.UpdateCreative(t.Context(), another, c.ID, "x", says("x"), 0)
		refused(t, err, order.ErrCreativeNotFound, "")
		_, err = g.FindCreative(t.Context(), another, c.ID)
		refused(t, err, order.ErrCreativeNotFound, "")
		_, err = g.TakeDownCreative(t.Context(), another, c.ID)
		refused(t, err, order.ErrCreativeNotFound, "")
		_, err = g.TakeDownCreative(t.Context(), buyer, "crv_01ARZ3NDEKTSV4RRFFQ69G5FAV")
		refused(t, err, order.ErrCreativeNotFound, "")
	})
	t.Run("AtOnce", func(t *testing.T) {
		c := g.made(t, buyer, says("0"))
		const at = 8
		errs := make([]error, at)
		var all sync.WaitGroup
		for n := range at {
			all.Go(func() {
				_, errs[n] = g.UpdateCreative(t.Context(), buyer, c.ID, c.Title, says(fmt.Sprint("at once ", n)), 0)
			})
		}
		all.Wait()
		for _, err := range errs {
			require.NoError(t, err)
		}
		found, err := g.FindCreative(t.Context(), buyer, c.ID)
		require.NoError(t, err)
		require.Len(t, found.Versions, at+1)
		for i, v := range found.Versions {
			require.Equal(t, at+1-i, v.Number)
		}
		// Of those who begin with one version one gets through.
		changed := 0
		for n := range at {
			all.Go(func() {
				_, errs[n] = g.UpdateCreative(t.Context(), buyer, c.ID, c.Title, says(fmt.Sprint("again ", n)), at+1)
			})
		}
		all.Wait()
		for _, err := range errs {
			if err != nil {
				require.ErrorIs(t, err, order.ErrCreativeChanged)
				changed++
			}
		}
		require.Equal(t, at-1, changed)
	})
	t.Run("ErrTooManyVersions", func(t *testing.T) {
		c := g.made(t, buyer, says("first"))
		g.exec(t, `INSERT INTO creative_versions (creative_id, version, sha256, media_type, width_px, height_px, duration_ms, thumbnail, create_time)
			SELECT $1, n, repeat('a', 64), 'image/png', 1, 1, 0, '', now() FROM generate_series(2, $2::integer) AS n`, c.ID, order.MaxVersions-1)
		g.exec(t, "UPDATE creatives SET version = $2 WHERE creative_id = $1", c.ID, order.MaxVersions-1)
		last := g.edited(t, c, says("last"))
		require.Equal(t, order.MaxVersions, last.Newest().Number)
		_, err := g.UpdateCreative(t.Context(), buyer, c.ID, "x", says("one more"), 0)
		refused(t, err, order.ErrTooManyVersions, "")
		found, err := g.FindCreative(t.Context(), buyer, c.ID)
		require.NoError(t, err)
		require.Len(t, found.Versions, order.MaxVersions)
	})
}

func TestListCreatives(t *testing.T) {
	g := newGallery(t)
	var want []string
	for n := range 5 {
		c := g.made(t, buyer, says(fmt.Sprint(n)))
		g.edited(t, c, says(fmt.Sprint("edited ", n)))
		want = append([]string{c.ID}, want...)
	}
	g.made(t, another, says("not ours"))
	var got []string
	page := paging.Page{Size: 2}
	for {
		found, next, err := g.ListCreatives(t.Context(), buyer, page)
		require.NoError(t, err)
		for _, c := range found {
			require.Len(t, c.Versions, 1)
			require.Equal(t, 2, c.Newest().Number)
			got = append(got, c.ID)
		}
		if page.Token = next; next == "" {
			break
		}
		require.Len(t, found, 2)
		_, _, err = g.ListCreatives(t.Context(), another, paging.Page{Token: next})
		refused(t, err, paging.ErrTokenInvalid, "page_token")
	}
	require.Equal(t, want, got)
}

// show makes the lines of a booked order show a creative.
func (g *gallery) show(t *testing.T, o order.Order, c order.Creative) order.Order {
	t.Helper()
	o, err := g.SetLineCreative(t.Context(), o.OrganisationID, o.ID, nil, c.ID)
	require.NoError(t, err)
	return o
}

// shown is what the displays of booked lines were told, by device.
func (g *gallery) shown(t *testing.T) map[string]order.BookedLine {
	t.Helper()
	lines, err := g.store.Sold(t.Context(), nil, g.now(), order.LinePosition{}, 100)
	require.NoError(t, err)
	told := map[string]order.BookedLine{}
	for _, l := range lines {
		require.False(t, l.Behind, "%s was not told of what it is to show", l.DeviceID)
		told[l.DeviceID] = l.BookedLine
	}
	return told
}

func TestSetLineCreative(t *testing.T) {
	g := newGallery(t)
	g.put(t, "dev_one")
	g.put(t, "dev_two")
	g.put(t, "dev_quick", "loop_seconds = 60", "slot_seconds = 1")
	g.fund(t, buyer, eur(100*priceOfADay))
	c := g.made(t, buyer, says("hello"))
	o := g.held(t, buyer, slotOn("dev_one", 10, 10), slotOn("dev_two", 10, 10))

	changed, err := g.SetLineCreative(t.Context(), buyer, o.ID, []string{o.Lines[1].ID}, c.ID)
	require.NoError(t, err)
	require.Equal(t, []string{"", c.ID}, []string{changed.Lines[0].CreativeID, changed.Lines[1].CreativeID})
	require.Equal(t, changed, g.find(t, o))
	require.Zero(t, get[int](t, g.market, "SELECT count(*) FROM approvals"), "nobody is asked about a hold")
	changed = g.show(t, o, c)
	require.Equal(t, []string{c.ID, c.ID}, []string{changed.Lines[0].CreativeID, changed.Lines[1].CreativeID})
	changed, err = g.SetLineCreative(t.Context(), buyer, o.ID, nil, "")
	require.NoError(t, err)
	require.Equal(t, []string{"", ""}, []string{changed.Lines[0].CreativeID, changed.Lines[1].CreativeID})

	g.booked(t, o)
	g.show(t, o, c)
	require.Equal(t, 1, get[int](t, g.market, "SELECT count(*) FROM approvals WHERE state = 'PENDING' AND owner_id = $1", owner), "an owner is asked once")
	require.Nil(t, g.shown(t)["dev_one"].Showing)
	_, err = g.DecideApproval(t.Context(), owner, c.ID, 1, true, "")
	require.NoError(t, err)
	require.Equal(t, c.Newest().SHA256, g.shown(t)["dev_one"].Showing.SHA256)
	// Another one is not approved, so that nothing is shown until it is.
	other := g.made(t, buyer, says("other"))
	_, err = g.SetLineCreative(t.Context(), buyer, o.ID, []string{o.Lines[0].ID}, other.ID)
	require.NoError(t, err)
	require.Nil(t, g.shown(t)["dev_one"].Showing)
	require.Equal(t, c.Newest().SHA256, g.shown(t)["dev_two"].Showing.SHA256)
	g.show(t, o, c)
	require.Equal(t, c.Newest().SHA256, g.shown(t)["dev_one"].Showing.SHA256, "what was approved needs no asking")
	_, err = g.SetLineCreative(t.Context(), buyer, o.ID, nil, "")
	require.NoError(t, err)
	require.Nil(t, g.shown(t)["dev_one"].Showing)

	t.Run("Repeat", func(t *testing.T) {
		g.show(t, o, c)
		events := get[int](t, g.market, "SELECT count(*) FROM outbox")
		g.show(t, o, c)
		require.Equal(t, events, get[int](t, g.market, "SELECT count(*) FROM outbox"))
	})
	t.Run("ErrLineNotFound", func(t *testing.T) {
		theirs := g.held(t, another, slotOn("dev_one", 20, 20))
		_, err := g.SetLineCreative(t.Context(), buyer, o.ID, []string{o.Lines[0].ID, theirs.Lines[0].ID}, other.ID)
		refused(t, err, order.ErrLineNotFound, "line_ids[1]")
		require.Equal(t, c.ID, g.find(t, o).Lines[0].CreativeID, "all lines or none")
	})
	t.Run("ErrNotFound", func(t *testing.T) {
		_, err := g.SetLineCreative(t.Context(), another, o.ID, nil, "")
		refused(t, err, order.ErrNotFound, "")
	})
	t.Run("ErrCreativeNotFound", func(t *testing.T) {
		theirs := g.made(t, another, says("theirs"))
		for _, id := range []string{theirs.ID, "crv_01ARZ3NDEKTSV4RRFFQ69G5FAV"} {
			_, err := g.SetLineCreative(t.Context(), buyer, o.ID, nil, id)
			refused(t, err, order.ErrCreativeNotFound, "")
		}
	})
	t.Run("ErrCreativeTakenDown", func(t *testing.T) {
		gone := g.made(t, buyer, says("gone"))
		_, err := g.TakeDownCreative(t.Context(), buyer, gone.ID)
		require.NoError(t, err)
		_, err = g.SetLineCreative(t.Context(), buyer, o.ID, nil, gone.ID)
		refused(t, err, order.ErrCreativeTakenDown, "")
	})
	t.Run("ErrCreativeDoesNotFit", func(t *testing.T) {
		long := g.made(t, buyer, order.Content{SHA256: g.upload(t, video(t))})
		quick := g.held(t, buyer, slotOn("dev_one", 21, 21), slotOn("dev_quick", 21, 21))
		_, err := g.SetLineCreative(t.Context(), buyer, quick.ID, nil, long.ID)
		f := refused(t, err, order.ErrCreativeDoesNotFit, "creative_id")
		require.Contains(t, f.Fields[0].Description, quick.Lines[1].ID)
		_, err = g.SetLineCreative(t.Context(), buyer, quick.ID, []string{quick.Lines[0].ID}, long.ID)
		require.NoError(t, err)
		// Nor can it become one that is too long.
		short := g.made(t, buyer, says("short"))
		_, err = g.SetLineCreative(t.Context(), buyer, quick.ID, []string{quick.Lines[1].ID}, short.ID)
		require.NoError(t, err)
		_, err = g.UpdateCreative(t.Context(), buyer, short.ID, "x", order.Content{SHA256: long.Newest().SHA256}, 0)
		refused(t, err, order.ErrCreativeDoesNotFit, "content.media_sha256")
		_, err = g.cancel(t, quick)
		require.NoError(t, err)
		_, err = g.UpdateCreative(t.Context(), buyer, short.ID, "x", order.Content{SHA256: long.Newest().SHA256}, 0)
		require.NoError(t, err, "nobody shows it any more")
	})
	t.Run("ErrState", func(t *testing.T) {
		cancelled := g.held(t, buyer, slotOn("dev_one", 22, 22))
		_, err := g.cancel(t, cancelled)
		require.NoError(t, err)
		_, err = g.SetLineCreative(t.Context(), buyer, cancelled.ID, nil, c.ID)
		require.Equal(t, "the order is cancelled", refused(t, err, order.ErrState, "").Message)
		expired := g.held(t, buyer, slotOn("dev_one", 23, 23))
		g.exec(t, "UPDATE orders SET hold_expire_time = now() WHERE order_id = $1", expired.ID)
		_, err = g.SetLineCreative(t.Context(), buyer, expired.ID, nil, c.ID)
		require.Equal(t, "the order is expired", refused(t, err, order.ErrState, "").Message)
	})
}

// TestTakeDownCreative takes off what is shown, for good.
func TestTakeDownCreative(t *testing.T) {
	g := newGallery(t)
	g.put(t, "dev_one")
	g.put(t, "dev_own", "organisation_id = '"+buyer+"'")
	g.fund(t, buyer, eur(10*priceOfADay))
	c := g.made(t, buyer, says("hello"))
	o := g.show(t, g.booked(t, g.held(t, buyer, slotOn("dev_one", 10, 10), slotOn("dev_own", 10, 10))), c)
	_, err := g.DecideApproval(t.Context(), owner, c.ID, 1, true, "")
	require.NoError(t, err)
	c = g.edited(t, c, says("hello again"))
	before := g.shown(t)
	require.NotNil(t, before["dev_one"].Showing)
	require.NotNil(t, before["dev_own"].Showing)

	g.clock.Add(int64(time.Hour))
	taken, err := g.TakeDownCreative(t.Context(), buyer, c.ID)
	require.NoError(t, err)
	require.Equal(t, g.now().UTC(), taken.TakeDownTime)
	for device, line := range g.shown(t) {
		require.Nil(t, line.Showing)
		require.Contains(t, line.TakenDown, before[device].Showing.ID, "it is off at once")
		require.Greater(t, line.Revision, before[device].Revision)
	}
	require.Equal(t, []int{0, 0}, []int{g.find(t, o).Lines[0].ShownVersion, g.find(t, o).Lines[1].ShownVersion})

	t.Run("Repeat", func(t *testing.T) {
		g.clock.Add(int64(time.Hour))
		again, err := g.TakeDownCreative(t.Context(), buyer, c.ID)
		require.NoError(t, err)
		require.Equal(t, taken, again)
	})
	t.Run("NothingIsPending", func(t *testing.T) {
		found, _, err := g.ListApprovals(t.Context(), owner, order.Pending, paging.Page{})
		require.NoError(t, err)
		require.Empty(t, found)
	})
	t.Run("NotApprovedAgain", func(t *testing.T) {
		for version := 1; version <= 2; version++ {
			_, err := g.DecideApproval(t.Context(), owner, c.ID, version, true, "")
			refused(t, err, order.ErrCreativeTakenDown, "")
		}
		_, err := g.DecideApproval(t.Context(), owner, c.ID, 2, false, "never")
		require.NoError(t, err)
	})
	t.Run("NotEditedBack", func(t *testing.T) {
		edited := g.edited(t, c, says("back"))
		require.Equal(t, taken.TakeDownTime, edited.TakeDownTime)
		require.Zero(t, get[int](t, g.market, "SELECT count(*) FROM approvals WHERE version = 3"), "nobody is asked")
		for _, line := range g.shown(t) {
			require.Nil(t, line.Showing)
		}
	})
	t.Run("AnotherInItsPlace", func(t *testing.T) {
		g.show(t, o, g.made(t, buyer, says("instead")))
		require.NotNil(t, g.shown(t)["dev_own"].Showing)
	})
}

// TestTakeDownOfMany takes a creative off many displays in one call.
func TestTakeDownOfMany(t *testing.T) {
	const displays, each = 10, 200
	g := newGallery(t)
	g.fund(t, owner, eur(displays*each*priceOfADay))
	c := g.made(t, owner, says("everywhere"))
	for d := range displays {
		lines := make([]order.LineRequest, each)
		for n := range lines {
			id := fmt.Sprintf("dev_%d_%d", d, n)
			g.put(t, id)
			lines[n] = slotOn(id, 10, 10)
			lines[n].CreativeID = c.ID
		}
		g.booked(t, g.held(t, owner, lines...))
	}
	require.Equal(t, displays*each, get[int](t, g.market, "SELECT count(*) FROM lines WHERE shown_version = 1"))
	within, cancel := context.WithTimeout(t.Context(), 4*time.Second) // a call of the database has five
	defer cancel()
	_, err := g.TakeDownCreative(within, owner, c.ID)
	require.NoError(t, err)
	require.Zero(t, get[int](t, g.market, "SELECT count(*) FROM lines WHERE shown_version <> 0"))
}
