"""Asks about a picture from Python, without a gateway; then keeps its embeddings and asks with those.

percept encoder --model percept-tiny --listen 127.0.0.1:50051
percept llm     --model percept-tiny --listen 127.0.0.1:50052
python examples/client.py examples/shapes.png "What is in the picture?"
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from percept import Client, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=64)


def main() -> None:
    """Reads the command line and writes three answers, which are the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    parser.add_argument("--encoder", default="127.0.0.1:50051", help="HOST:PORT of an encoder service")
    parser.add_argument("--llm", default="127.0.0.1:50052", help="HOST:PORT of an LLM service")
    options = parser.parse_args()
    picture = Image.open(options.image)

    with Client(encoder=options.encoder, llm=options.llm) as client:
        # A conversation, rendered with the model's own chat template, as it comes.
        question = {"type": "text", "text": options.question}
        content = [{"type": "image", "image": picture}, question]
        for delta in client.chat([{"role": "user", "content": content}], GREEDY, stream=True):
            print(delta.text, end="", flush=True)
        print()

        # The same with embeddings that were computed before: no encoder is needed any more.
        embeddings = client.encode(picture)
        embedded = [{"type": "image_embeds", "image_embeds": embeddings}, question]
        print(client.chat([{"role": "user", "content": embedded}], GREEDY).text)

        # Prompts in the model's own format, many at once: here Qwen2-VL's.
        prompt = (
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
            f"{options.question}<|im_end|>\n<|im_start|>assistant\n"
        )
        answers = client.generate([{"prompt": prompt, "multi_modal_data": {"image": picture}}], GREEDY)
        print(answers[0].outputs[0].text)


if __name__ == "__main__":
    main()
