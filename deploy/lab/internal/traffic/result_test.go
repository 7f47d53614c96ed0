package traffic

import (
	"bytes"
	"testing"
	"time"
)

func TestWhatAWriterWritesIsParsed(t *testing.T) {
	var text bytes.Buffer
	writer := NewWriter(&text)
	for _, result := range []Result{
		{Began: time.Unix(1, 0), Took: time.Second, Answer: Answer{Pod: "a"}},
		{Began: time.Unix(2, 0), Error: "refused"},
	} {
		if err := writer.Write(result); err != nil {
			t.Fatal(err)
		}
	}
	text.WriteString("a message\n{\"began\":\"2026-01-01T00")
	results := Parse(text.Bytes())
	if len(results) != 2 {
		t.Fatalf("%d results", len(results))
	}
	summary := Summarise(results)
	if summary.Count != 2 || summary.Failed != 1 || summary.Pods["a"] != 1 || summary.Slowest != time.Second {
		t.Errorf("%+v", summary)
	}
	if summary.String() != "1 of 2 failed: refused" {
		t.Error(summary)
	}
}
