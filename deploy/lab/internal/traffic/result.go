// Package traffic is what the lab's clients and servers tell about each request, and the sums over it.
package traffic

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Answer is the body of a server's response: who was asked by whom.
type Answer struct {
	Pod    string `json:"pod"`
	Port   string `json:"port"`
	Client string `json:"client"`
	Host   string `json:"host"`
}

// Result is one request as its client saw it. It failed if Error is not empty.
type Result struct {
	Began  time.Time     `json:"began"`
	Took   time.Duration `json:"took"`
	Target string        `json:"target"`
	Status int           `json:"status,omitempty"`
	Answer Answer        `json:"answer,omitzero"`
	Error  string        `json:"error,omitempty"`
}

// Writer writes one JSON line per result, safe for many goroutines.
type Writer struct {
	mutex   sync.Mutex
	encoder *json.Encoder
}

// NewWriter writes to out.
func NewWriter(out io.Writer) *Writer {
	return &Writer{encoder: json.NewEncoder(out)}
}

// Write appends a result.
func (w *Writer) Write(result Result) error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.encoder.Encode(result)
}

// Parse reads what a Writer wrote. Lines that are no results (a program's own messages) and a last line that is still
// being written are left out.
func Parse(text []byte) []Result {
	var results []Result
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var result Result
		if json.Unmarshal(lines.Bytes(), &result) == nil && !result.Began.IsZero() {
			results = append(results, result)
		}
	}
	return results
}

// ReadSince reads the results in a file that began at or after a time.
func ReadSince(path string, since time.Time) ([]Result, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("results of a client: %w", err)
	}
	var kept []Result
	for _, result := range Parse(text) {
		if !result.Began.Before(since) {
			kept = append(kept, result)
		}
	}
	return kept, nil
}

// Summary is what many results add up to.
type Summary struct {
	Count, Failed int
	FirstError    string
	Slowest       time.Duration
	// Pods counts the answers of each pod.
	Pods map[string]int
}

// Summarise adds results up.
func Summarise(results []Result) Summary {
	summary := Summary{Pods: map[string]int{}}
	for _, result := range results {
		summary.Count++
		if result.Error != "" {
			summary.Failed++
			if summary.FirstError == "" {
				summary.FirstError = result.Error
			}
			continue
		}
		summary.Pods[result.Answer.Pod]++
		summary.Slowest = max(summary.Slowest, result.Took)
	}
	return summary
}

func (s Summary) String() string {
	if s.Failed > 0 {
		return fmt.Sprintf("%d of %d failed: %s", s.Failed, s.Count, s.FirstError)
	}
	return fmt.Sprintf("%d requests, slowest %s", s.Count, s.Slowest.Round(time.Millisecond))
}
