package account

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/fault"
)

func TestPreparePassword(t *testing.T) {
	t.Run("OK", func(t *testing.T) {
		// The same password from a keyboard that composes and one that does not,
		// and with a no-break space.
		composed, err := preparePassword("caf\u00e9 au lait")
		require.NoError(t, err)
		decomposed, err := preparePassword("cafe\u0301\u00a0au lait")
		require.NoError(t, err)
		require.Equal(t, composed, decomposed)
		kept, err := preparePassword("Case Counts")
		require.NoError(t, err)
		require.Equal(t, "Case Counts", kept)
	})
	for name, password := range map[string]string{
		"ErrNUL": "violet\x00tugboat", "ErrNewline": "violet\ntugboat", "ErrEmpty": "", "ErrUndefined": "violet\u0378tugboat",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := preparePassword(password)
			require.ErrorIs(t, err, ErrPasswordInvalid)
		})
	}
}

func TestCheckPassword(t *testing.T) {
	for _, password := range []string{
		"violet tugboat 94", "correct horse battery staple", "x7$kQ2vM", "Маяк над заливом", "tr0ub4dor&3-lamp",
		strings.Repeat("violet tugboat 94 ", 14), "日本の古い鉄道橋で待つ",
	} {
		t.Run("OK/"+password[:8], func(t *testing.T) { require.NoError(t, checkPassword(password, "ada.lovelace")) })
	}
	for _, tc := range []struct{ password, name, rule string }{
		{"x7$kQ2v", "ada", "password.min_len"},
		{"пароль1", "ada", "password.min_len"}, // 13 bytes, 7 characters
		{"password", "ada", "password.common"},
		{"Password1", "ada", "password.common"},
		{"P@ssw0rd", "ada", "password.common"},
		{"iloveyou", "ada", "password.common"},
		{"football1", "ada", "password.common"},
		{"letmein123", "ada", "password.common"},
		{"drowssap", "ada", "password.common"},
		{"trustno1", "ada", "password.common"},
		{"baseball", "ada", "password.common"},
		{"superman", "ada", "password.common"},
		{"marquee1", "ada", "password.common"},
		{"aaaaaaaa", "ada", "password.repeated"},
		{"abcabcabcabc", "ada", "password.repeated"},
		{"zxzxzxzxzxzx", "ada", "password.repeated"},
		{"56789012", "ada", "password.sequence"},
		{"ijklmnopq", "ada", "password.sequence"},
		{"fghjkl;'", "ada", "password.keyboard"},
		{"tug-ada.lovelace-94", "Ada.Lovelace", "password.contains_name"},
		{"violet-lovelace-94", "lovelace@example.org", "password.contains_name"},
	} {
		t.Run("ErrPasswordTooWeak/"+tc.password, func(t *testing.T) {
			err := checkPassword(tc.password, tc.name)
			require.ErrorIs(t, err, ErrPasswordTooWeak)
			f, _ := fault.From(err)
			require.Len(t, f.Fields, 1)
			require.Equal(t, "password", f.Fields[0].Path)
			require.Equal(t, tc.rule, f.Fields[0].Rule, f.Fields[0].Description)
		})
	}

	t.Run("OKBounded", func(t *testing.T) {
		// What costs the estimate most: as long as the API lets it be, and full
		// of words, dates and repeats.
		began := time.Now()
		_ = checkPassword(strings.Repeat("1a2b3c4d password 1999 qwerty ", 9)[:256], "ada")
		require.Less(t, time.Since(began), 2*time.Second)
	})
}
