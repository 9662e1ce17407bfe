package fleet

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
)

const (
	// BatchPlays is how many plays a batch has: the most that there may be.
	BatchPlays = 200
	// Creative is what was played.
	Creative = "bench"
	// PlayLength is for how long it was shown each time, which is its full length.
	PlayLength = 10 * time.Second
)

// handIn has every connected client hand in what it played one after the other
// until now, in so many batches.
func (f *fleet) handIn(ctx context.Context, batches int) (Report, error) {
	if len(f.connected) == 0 || batches < 1 {
		return Report{}, fmt.Errorf("%d batches of %d clients", batches, len(f.connected))
	}
	now := time.Now()
	texts := make([][][]byte, len(f.connected))
	for i := range texts {
		for batch := range batches {
			text, err := batchOf(batch, now.Add(-time.Duration((batches-batch)*BatchPlays)*PlayLength))
			if err != nil {
				return Report{}, err
			}
			texts[i] = append(texts[i], text)
		}
	}
	var (
		all   sync.WaitGroup
		took  = make([]time.Duration, len(f.connected)*batches)
		errs  = make([]error, len(f.connected))
		began = time.Now()
	)
	for i, c := range f.connected {
		all.Go(func() {
			for batch, text := range texts[i] {
				start := time.Now()
				if errs[i] = c.publish(ctx, "d/"+c.login.User+"/up/plays", 1, text); errs[i] != nil {
					return
				}
				took[i*batches+batch] = time.Since(start)
			}
		})
	}
	all.Wait()
	return reportOf(began, took), first(errs)
}

// batchOf is a batch of plays the first of which began at a time.
func batchOf(number int, start time.Time) ([]byte, error) {
	type play struct {
		ID         string `json:"id"`
		CreativeID string `json:"creative_id"`
		DurationMS int64  `json:"duration_ms"`
	}
	batch := struct {
		ID    string `json:"batch_id"`
		Plays []play `json:"plays"`
	}{ID: fmt.Sprint(number)}
	for i := range BatchPlays {
		id, err := ulid.New(ulid.Timestamp(start.Add(time.Duration(i)*PlayLength)), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make an id: %w", err)
		}
		batch.Plays = append(batch.Plays, play{id.String(), Creative, PlayLength.Milliseconds()})
	}
	text, err := json.Marshal(batch)
	if err != nil {
		return nil, fmt.Errorf("write a batch: %w", err)
	}
	return text, nil
}
