package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// statement is one that Postgres executed.
type statement struct {
	text string
	// parameters are $1 and on as Postgres writes them; nil is NULL.
	parameters []*string
}

// transaction is what one connection did from BEGIN to COMMIT, or one statement
// outside of those.
type transaction []statement

// mentions says whether a text is in the parameters of a transaction.
func (t transaction) mentions(text string) bool {
	return slices.ContainsFunc(t, func(s statement) bool {
		return slices.ContainsFunc(s.parameters, func(p *string) bool { return p != nil && strings.Contains(*p, text) })
	})
}

// record returns the transactions that a Postgres executed while do ran: it has it log
// every statement, which a superuser only may ask for, and who owns its files.
func record(ctx context.Context, postgres *process, dataDir string, do func(context.Context) error) (_ []transaction, err error) {
	settings := filepath.Join(dataDir, "data", "postgresql.auto.conf")
	before, err := os.ReadFile(settings)
	if err != nil {
		return nil, fmt.Errorf("record statements: %w", err)
	}
	set := func(text []byte) error {
		if err := os.WriteFile(settings, text, 0o600); err != nil {
			return err
		}
		return syscall.Kill(postgres.pid, syscall.SIGHUP)
	}
	said, err := os.Stat(postgres.log)
	if err != nil {
		return nil, fmt.Errorf("record statements: %w", err)
	}
	if err := set(append(slices.Clone(before), "log_statement = 'all'\n"...)); err != nil {
		return nil, fmt.Errorf("record statements: %w", err)
	}
	defer func() { err = errors.Join(err, set(before)) }()
	// Each backend reads its settings when its next statement comes.
	pause(ctx, time.Second)
	if err := do(ctx); err != nil {
		return nil, err
	}
	log, err := os.Open(postgres.log)
	if err != nil {
		return nil, fmt.Errorf("record statements: %w", err)
	}
	defer log.Close()
	if _, err := log.Seek(said.Size(), 0); err != nil {
		return nil, fmt.Errorf("record statements: %w", err)
	}
	return readStatements(bufio.NewScanner(log))
}

var (
	loggedEntry = regexp.MustCompile(`^\d{4}-\d\d-\d\d \S+ \S+ \[(\d+)\] \S* ?(LOG|DETAIL|STATEMENT|ERROR|WARNING|FATAL|HINT|CONTEXT):  (.*)$`)
	executed    = regexp.MustCompile(`(?s)^(?:statement|execute [^:]+): (.*)$`)
	parameter   = regexp.MustCompile(`\$(\d+) = (NULL|'(?:[^']|'')*')`)
)

// readStatements reads what Postgres logs: entries whose further lines begin with a
// tab.
func readStatements(lines *bufio.Scanner) ([]transaction, error) {
	lines.Buffer(nil, 1<<20)
	open := map[string]*transaction{} // by connection
	var (
		all             []transaction
		pid, kind, text string
	)
	end := func() {
		defer func() { kind, text = "", "" }()
		switch {
		case kind == "LOG" && executed.MatchString(text):
			sql := executed.FindStringSubmatch(text)[1]
			under := open[pid]
			switch word, _, _ := strings.Cut(strings.ToLower(sql), " "); {
			case word == "begin":
				open[pid] = &transaction{}
			case under == nil:
				all = append(all, transaction{{text: sql}})
			case word == "commit":
				all = append(all, *under)
				delete(open, pid)
			case word == "rollback":
				delete(open, pid)
			default:
				*under = append(*under, statement{text: sql})
			}
		case kind == "DETAIL":
			last := &transaction{}
			if open[pid] != nil {
				last = open[pid]
			} else if len(all) > 0 {
				last = &all[len(all)-1]
			}
			if len(*last) == 0 {
				return
			}
			s := &(*last)[len(*last)-1]
			for _, m := range parameter.FindAllStringSubmatch(text, -1) {
				if m[1] != strconv.Itoa(len(s.parameters)+1) {
					break // it is of another statement
				}
				if m[2] == "NULL" {
					s.parameters = append(s.parameters, nil)
					continue
				}
				value := strings.ReplaceAll(m[2][1:len(m[2])-1], "''", "'")
				s.parameters = append(s.parameters, &value)
			}
		}
	}
	for lines.Scan() {
		if m := loggedEntry.FindStringSubmatch(lines.Text()); m != nil {
			end()
			pid, kind, text = m[1], m[2], m[3]
		} else if more, ok := strings.CutPrefix(lines.Text(), "\t"); ok {
			text += "\n" + more
		}
	}
	end()
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read Postgres's log: %w", err)
	}
	return all, nil
}

// varying is what is another in each execution: found in the values of parameters,
// and written as an expression of SQL that has variables of pgbench.
type varying struct {
	found *regexp.Regexp
	as    func(found string) string
}

// script has pgbench do the transactions again, with other values for what varies.
// The types of parameters are those that the database tells.
func script(ctx context.Context, db *pgx.Conn, variables string, transactions []transaction, vary []varying) (string, error) {
	var w strings.Builder
	w.WriteString(variables)
	for _, t := range transactions {
		if len(t) > 1 {
			w.WriteString("BEGIN;\n")
		}
		for _, s := range t {
			text, err := s.again(ctx, db, vary)
			if err != nil {
				return "", err
			}
			w.WriteString(text + ";\n")
		}
		if len(t) > 1 {
			w.WriteString("COMMIT;\n")
		}
	}
	return w.String(), nil
}

var numbered = regexp.MustCompile(`\$(\d+)`)

func (s statement) again(ctx context.Context, db *pgx.Conn, vary []varying) (string, error) {
	known, err := db.Prepare(ctx, "", s.text)
	if err != nil {
		return "", fmt.Errorf("prepare what Postgres executed: %w: %s", err, s.text)
	}
	if len(known.ParamOIDs) != len(s.parameters) {
		return "", fmt.Errorf("%d of %d parameters are known of %s", len(s.parameters), len(known.ParamOIDs), s.text)
	}
	values := make([]string, len(s.parameters))
	for i, p := range s.parameters {
		var of string
		if err := db.QueryRow(ctx, "SELECT format_type($1, NULL)", known.ParamOIDs[i]).Scan(&of); err != nil {
			return "", fmt.Errorf("read the type of a parameter: %w", err)
		}
		value := "NULL"
		if p != nil {
			value = expression(*p, vary)
		}
		values[i] = "(" + value + ")::" + of
	}
	var kept []string // without comments, whose colons pgbench would read
	for line := range strings.Lines(s.text) {
		if line = strings.TrimRight(line, "\n"); !strings.HasPrefix(strings.TrimSpace(line), "--") {
			kept = append(kept, line)
		}
	}
	return numbered.ReplaceAllStringFunc(strings.Join(kept, "\n"), func(n string) string {
		i, _ := strconv.Atoi(n[1:]) // digits
		return values[i-1]
	}), nil
}

// expression is a value of which some varies.
func expression(value string, vary []varying) string {
	for _, v := range vary {
		if at := v.found.FindStringIndex(value); at != nil {
			parts := []string{v.as(value[at[0]:at[1]])}
			if at[0] > 0 {
				parts = append([]string{expression(value[:at[0]], vary)}, parts...)
			}
			if at[1] < len(value) {
				parts = append(parts, expression(value[at[1]:], vary))
			}
			return strings.Join(parts, " || ")
		}
	}
	quoted := "'" + strings.ReplaceAll(value, "'", "''") + "'"
	// pgbench would take a colon and a letter for a variable, also in a text.
	return colon.ReplaceAllString(quoted, "' || chr(58) || '$1")
}

var colon = regexp.MustCompile(`:([A-Za-z_])`)

// pgbench is how a script is run again and again.
type pgbench struct {
	program  string
	env      []string
	database string
	dir      string
}

// findPgbench is "" where there is none: it is no part of the Postgres that services
// come with.
func findPgbench(binaries string) string {
	if path, err := exec.LookPath(filepath.Join(binaries, "pgbench")); err == nil {
		return path
	}
	path, _ := exec.LookPath("pgbench") // "" with an error
	return path
}

// run executes a script for a while, callers at a time, with prepared statements as
// the services have them.
func (p *pgbench) run(ctx context.Context, file string, callers int, d time.Duration, variables map[string]int64) (calls, error) {
	logs, err := os.MkdirTemp(p.dir, "pgbench-")
	if err != nil {
		return calls{}, fmt.Errorf("make a folder for pgbench: %w", err)
	}
	defer os.RemoveAll(logs)
	seconds := max(1, int(d.Round(time.Second)/time.Second))
	args := []string{
		"--no-vacuum", "--protocol=prepared", "--file=" + file, fmt.Sprint("--client=", callers), "--jobs=1", fmt.Sprint("--time=", seconds),
		"--log", "--log-prefix=" + filepath.Join(logs, "took"),
	}
	for name, value := range variables {
		args = append(args, fmt.Sprintf("--define=%s=%d", name, value))
	}
	command := exec.CommandContext(ctx, p.program, append(args, p.database)...) //nolint:gosec // what was found, and our own arguments
	command.Env = p.env
	said, err := command.CombinedOutput()
	if err != nil {
		return calls{}, fmt.Errorf("pgbench: %w\n%s", err, said)
	}
	made := calls{elapsed: time.Duration(seconds) * time.Second, cpu: command.ProcessState.UserTime() + command.ProcessState.SystemTime()}
	files, err := filepath.Glob(filepath.Join(logs, "took*"))
	if err != nil {
		return calls{}, fmt.Errorf("find what pgbench measured: %w", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return calls{}, fmt.Errorf("read what pgbench measured: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			// client, transaction, microseconds, and more
			fields := strings.Fields(line)
			if len(fields) < 3 {
				return calls{}, fmt.Errorf("read what pgbench measured: %q", line)
			}
			took, err := strconv.Atoi(fields[2])
			if err != nil {
				return calls{}, fmt.Errorf("read what pgbench measured: %w", err)
			}
			made.took = append(made.took, time.Duration(took)*time.Microsecond)
		}
	}
	if strings.Contains(string(said), "aborted") {
		return calls{}, fmt.Errorf("pgbench gave up:\n%s", said)
	}
	return made, nil
}
