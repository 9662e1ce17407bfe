package player

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"
)

// TestText: texts are read from what was fetched, without what a terminal would do.
func TestText(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		want    Text
		problem string
	}{
		"OK": {
			`{"text":"Spring\nsale","color":"#FF0000","background":"#000000","size_percent":10,"alignment":"center","bold":true}`,
			Text{Text: "Spring\nsale", Color: "#FF0000", Background: "#000000", SizePercent: 10, Alignment: "center", Bold: true}, "",
		},
		"OKUnknownMember": {`{"text":"a","font":"serif"}`, Text{Text: "a"}, ""},
		"OKControls":      {"{\"text\":\"a\\u001b[31mb\\r\\u0000c\\td\\u202ee\"}", Text{Text: "a[31mbc de"}, ""},
		"OKManyLines":     {`{"text":"` + strings.Repeat(`a\n`, 50) + `"}`, Text{Text: strings.Repeat("a\n", maxTextLines-1) + "a"}, ""},
		"ErrNoJSON":       {"Spring sale", Text{}, "no JSON of a text"},
		"ErrOtherJSON":    {`{"text":1}`, Text{}, "no JSON of a text"},
		"ErrTooLong":      {`{"text":"` + strings.Repeat("a", maxTextFile) + `"}`, Text{}, "no JSON of a text"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) { _, _ = out.Write([]byte(c.content)) }))
			t.Cleanup(server.Close)
			shown := itemAt(server.URL+"/text", []byte(c.content))
			shown.CreativeID, shown.DurationMS, shown.MediaType = "text", 20, TextType
			d, w := alone(t, t.TempDir(), time.Now, nil)
			d.want(playlistOf(1, shown))
			w.shows(t, "text")
			text, ok, err := d.Text(shown)
			require.True(t, ok)
			if c.problem != "" {
				require.ErrorContains(t, err, c.problem)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, text)
		})
	}
	d, _ := alone(t, t.TempDir(), time.Now, nil)
	_, ok, err := d.Text(Item{MediaType: "image/png"})
	require.False(t, ok)
	require.NoError(t, err)
	_, _, err = d.Text(Item{MediaType: TextType, CreativeID: "gone", SHA256: strings.Repeat("0", 64)})
	require.ErrorContains(t, err, "gone")
}

func FuzzText(f *testing.F) {
	f.Add([]byte(`{"text":"Spring\nsale","color":"#FF0000"}`))
	f.Add([]byte("{\"text\":\"\\u001b\\u009b\"}"))
	f.Fuzz(func(t *testing.T, content []byte) {
		text, err := parseText(content)
		if err != nil {
			return
		}
		require.Less(t, strings.Count(text.Text, "\n"), maxTextLines)
		for _, r := range text.Text {
			require.True(t, r == '\n' || !unicode.IsControl(r), "%q", text.Text)
		}
	})
}
