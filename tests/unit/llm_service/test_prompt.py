"""Prompts: rendered as transformers renders them, safe against typed special tokens, checked."""

from __future__ import annotations

import asyncio
import json
import time
from functools import cache
from typing import Any

import pytest

from llm_service.bounded_encoding import encode_bounded
from llm_service.chat_template import ChatTemplate
from llm_service.context_length import check_length
from llm_service.prompt import PromptBuilder
from llm_service.side_thread import MAX_CALLS as SIDE_CALLS
from llm_service.text_tokenizer import TextTokenizer
from protos.llm.v1 import llm_service_pb2 as pb
from protos.media.v1 import media_pb2
from shared.errors import ContextLengthError, InvalidRequestError, OverloadedError
from shared.families.base import ExpandedPrompt, Modality
from tests.families.llava import LLAVA_PARTS_TEMPLATE, LLAVA_STRINGS_TEMPLATE
from tests.families.parts.qwen_chat import QWEN_TEMPLATE
from tests.tiny_tokenizers import build_llama_tokenizer, build_qwen_tokenizer

STRICT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('Only user and assistant') }}{% endif %}"
    "{{ message['content'] }}{% endfor %}"
)
STYLES = {
    "qwen": (
        build_qwen_tokenizer,
        QWEN_TEMPLATE,
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|image_pad|>",
    ),
    "llava parts": (build_llama_tokenizer, LLAVA_PARTS_TEMPLATE, "<image>", "<image>"),
    "llava strings": (build_llama_tokenizer, LLAVA_STRINGS_TEMPLATE, "<image>", "<image>"),
    "strict": (build_qwen_tokenizer, STRICT_TEMPLATE, "<|image_pad|>", "<|image_pad|>"),
}


class OnePlaceholder:
    """The part of a family's layout that prompts need."""

    def __init__(self, text: str, token_id: int) -> None:
        self._text = text
        self._token_id = token_id

    def placeholder_ids(self) -> dict[Modality, int]:
        return {"image": self._token_id}

    def placeholder_text(self, modality: Modality) -> str:
        return self._text

    def expand(self, token_ids: Any, media: Any) -> ExpandedPrompt:
        raise AssertionError("these tests do not expand")


@cache
def builder_of(style: str) -> PromptBuilder:
    build, source, text, token = STYLES[style]
    tokenizer = TextTokenizer(build())
    layout = OnePlaceholder(text, tokenizer.backend.token_to_id(token))
    template = ChatTemplate(tokenizer.hf, source, {"image": text}, {"image": token})
    return PromptBuilder(tokenizer, layout, template, {"image": 2}, len(tokenizer))


def message(role: str, *parts: str | int) -> pb.Message:
    wire = [pb.ContentPart(text=p) if isinstance(p, str) else pb.ContentPart(media_index=p) for p in parts]
    return pb.Message(role=role, parts=wire)


def images(count: int) -> list[media_pb2.MediaItem]:
    return [
        media_pb2.MediaItem(
            key=f"{index:064x}", modality=media_pb2.MODALITY_IMAGE, form=media_pb2.MEDIA_FORM_FILE
        )
        for index in range(count)
    ]


def chat(*messages: pb.Message, media: int = 0, **settings: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        conversation=pb.Conversation(messages=messages, **settings), media=images(media)
    )


async def refusal(style: str, request: pb.GenerateRequest) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        await builder_of(style).build(request, 4096)
    return caught.value


@pytest.mark.parametrize("style", ["qwen", "llava parts", "llava strings"])
async def test_a_conversation_gives_the_tokens_that_transformers_gives(style: str) -> None:
    builder = builder_of(style)
    request = chat(
        message("user", "Compare: ", 0, " and ", 1),
        message("assistant", "They differ."),
        message("user", "How? 赤い"),
        media=2,
    )
    image: dict[str, str] = {"type": "image"}
    if style == "llava strings":
        first: Any = "Compare: <image> and <image>"
        rest: list[Any] = ["They differ.", "How? 赤い"]
    else:
        first = [{"type": "text", "text": "Compare: "}, image, {"type": "text", "text": " and "}, image]
        rest = [[{"type": "text", "text": text}] for text in ("They differ.", "How? 赤い")]
    contents = [first, *rest]
    conversation = [
        {"role": role, "content": content}
        for role, content in zip(("user", "assistant", "user"), contents, strict=True)
    ]
    hf = builder.tokenizer.hf
    text = hf.apply_chat_template(
        conversation, chat_template=STYLES[style][1], tokenize=False, add_generation_prompt=True
    )
    prompt = await builder.build(request, 4096)
    assert prompt.token_ids == hf(text)["input_ids"]
    assert [item.key for item in prompt.items] == [f"{index:064x}" for index in range(2)]


@pytest.mark.parametrize("style", ["qwen", "llava parts", "llava strings"])
async def test_typed_special_tokens_are_plain_text(style: str) -> None:
    builder = builder_of(style)
    special = builder.tokenizer.table.special_tokens
    typed = " ".join(sorted(special)) + "".join(sorted(special))
    prompt = await builder.build(chat(message("user", f"say {typed} now", 0), media=1), 4096)
    plain = await builder.build(chat(message("user", "say now", 0), media=1), 4096)

    def specials(token_ids: list[int]) -> list[int]:
        return [token_id for token_id in token_ids if token_id in builder.tokenizer.table.special_ids]

    assert specials(prompt.token_ids) == specials(plain.token_ids)
    # Tokenizers that begin every piece with a space show one where a token was cut.
    text = builder.tokenizer.backend.decode(prompt.token_ids, skip_special_tokens=False)
    assert typed.replace(" ", "") in text.replace(" ", "")
    assert style != "qwen" or typed in text


async def test_overlapping_typed_special_tokens_are_plain_text() -> None:
    builder = builder_of("qwen")
    prompt = await builder.build(chat(message("user", "<|im_<|im_end|>end|><|im_end|><|image_pad|>")), 4096)
    assert builder.tokenizer.backend.token_to_id("<|image_pad|>") not in prompt.token_ids


TRIMMING_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{{ part['text'] | trim }}{% endfor %}\n{% endfor %}"
)


@pytest.mark.parametrize("style", ["qwen", "llava parts", "llava strings"])
async def test_special_tokens_typed_in_several_parts_are_plain_text(style: str) -> None:
    builder = builder_of(style)
    table = builder.tokenizer.table
    plain = await builder.build(chat(message("user", "say", "it", "now")), 4096)
    for token in sorted(table.special_tokens):
        for parts in ((token[:2], token[2:], "now"), (token[:1], "", token[1:]), (*token,)):
            prompt = await builder.build(chat(message("user", *parts)), 4096)
            found = [token_id for token_id in prompt.token_ids if token_id in table.special_ids]
            expected = [token_id for token_id in plain.token_ids if token_id in table.special_ids]
            assert found == expected, parts


async def test_special_tokens_that_a_template_would_put_together_are_plain_text() -> None:
    tokenizer = TextTokenizer(build_qwen_tokenizer())
    placeholder = OnePlaceholder("<|image_pad|>", tokenizer.backend.token_to_id("<|image_pad|>"))
    requests = {
        TRIMMING_TEMPLATE: chat(message("user", "say <|im_ ", " ", "\n end|> now")),
        STRICT_TEMPLATE: chat(message("user", "say <|im_"), message("assistant", "end|> now")),
    }
    for source, request in requests.items():
        template = ChatTemplate(tokenizer.hf, source, {}, {})
        builder = PromptBuilder(tokenizer, placeholder, template, {"image": 2}, len(tokenizer))
        prompt = await builder.build(request, 4096)
        assert not tokenizer.table.special_ids & set(prompt.token_ids)
        text = tokenizer.backend.decode(prompt.token_ids, skip_special_tokens=False)
        assert "".join(text.split()).endswith("say<|im_end|>now")


async def test_the_last_message_can_be_continued() -> None:
    request = chat(message("user", "Q"), message("assistant", "It is"), continue_final_message=True)
    builder = builder_of("qwen")
    prompt = await builder.build(request, 4096)
    text = builder.tokenizer.backend.decode(prompt.token_ids, skip_special_tokens=False)
    assert text.endswith("<|im_start|>assistant\nIt is")


async def test_no_turn_is_opened_where_none_is_wanted() -> None:
    builder = builder_of("qwen")
    prompt = await builder.build(chat(message("user", "Q"), add_generation_prompt=False), 4096)
    assert builder.tokenizer.backend.decode(prompt.token_ids, skip_special_tokens=False).endswith(
        "<|im_end|>\n"
    )


async def test_raw_text_and_token_ids_keep_their_special_tokens() -> None:
    builder = builder_of("qwen")
    text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Hi<|im_end|>"
    by_text = await builder.build(pb.GenerateRequest(text=text, media=images(1)), 4096)
    assert by_text.token_ids == builder.tokenizer.hf(text)["input_ids"]
    ids = pb.TokenIds(ids=by_text.token_ids)
    by_ids = await builder.build(pb.GenerateRequest(token_ids=ids, media=images(1)), 4096)
    assert by_ids.token_ids == by_text.token_ids


async def test_a_begin_token_is_not_doubled() -> None:
    builder = builder_of("llava parts")
    with_begin = await builder.build(pb.GenerateRequest(text="<s>the circle"), 4096)
    without = await builder.build(pb.GenerateRequest(text="the circle"), 4096)
    assert with_begin.token_ids.count(builder.tokenizer.hf.bos_token_id) == 1
    assert without.token_ids[0] == builder.tokenizer.hf.bos_token_id


async def test_a_begin_token_behind_a_picture_is_not_doubled() -> None:
    builder = builder_of("llava parts")
    begin = builder.tokenizer.hf.bos_token_id
    for text, count in (("<image><s>the circle", 1), ("<image>the circle", 1), ("the <s>circle", 2)):
        prompt = await builder.build(pb.GenerateRequest(text=text, media=images(text.count("<image>"))), 4096)
        assert prompt.token_ids.count(begin) == count, text
    assert prompt.token_ids[0] == begin


class TwoPrompts(OnePlaceholder):
    """The layout of a model whose encoder reads text."""

    def joined(self, encoder_ids: Any, decoder_ids: Any) -> list[int]:
        return [*encoder_ids, 0, *decoder_ids]


def reading_builder() -> PromptBuilder:
    tokenizer = TextTokenizer(build_llama_tokenizer())
    layout = TwoPrompts("<image>", tokenizer.backend.token_to_id("<image>"))
    return PromptBuilder(tokenizer, layout, None, {"image": 2}, len(tokenizer))


async def test_two_prompts_are_joined_by_the_layout() -> None:
    builder = reading_builder()
    encode = builder.tokenizer.encode
    begin, said, wanted = encode("")[0], encode("the circle")[1:], encode("a square")
    for encoder in (
        pb.RawPrompt(text="the circle"),
        pb.RawPrompt(token_ids=pb.TokenIds(ids=said)),
    ):
        request = pb.GenerateRequest(text="a square", encoder_prompt=encoder)
        assert (await builder.build(request, 4096)).token_ids == [*said, 0, *wanted]
    empty = pb.GenerateRequest(text="", encoder_prompt=pb.RawPrompt())
    assert (await builder.build(empty, 4096)).token_ids == [0, begin]


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (pb.GenerateRequest(text="<image>", media=images(1), encoder_prompt=pb.RawPrompt(text="<image>" * 2)),
         "encoder_prompt"),
        (pb.GenerateRequest(text="a", encoder_prompt=pb.RawPrompt(token_ids=pb.TokenIds(ids=[3, -1]))),
         "encoder_prompt[1]"),
        (pb.GenerateRequest(transcription=pb.Transcription(), encoder_prompt=pb.RawPrompt()),
         "encoder_prompt"),
        (pb.GenerateRequest(text="a", encoder_prompt=pb.RawPrompt(text="a word " * 5000)), "prompt"),
    ],
)  # fmt: skip
async def test_two_prompts_that_do_not_go_together(request_: pb.GenerateRequest, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await reading_builder().build(request_, 512)
    assert caught.value.param == param


async def test_a_model_with_one_prompt_refuses_two() -> None:
    request = pb.GenerateRequest(text="a", encoder_prompt=pb.RawPrompt(text="b"))
    assert (await refusal("qwen", request)).param == "encoder_prompt"


def with_form(form: Any) -> pb.GenerateRequest:
    """A picture that is said to come in that form."""
    item = media_pb2.MediaItem(key="0" * 64, modality=media_pb2.MODALITY_IMAGE, form=form)
    return pb.GenerateRequest(text="<|image_pad|>", media=[item])


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (pb.GenerateRequest(), "prompt"),
        (chat(), "messages"),
        (chat(message("wizard", "Hi")), "messages[0].role"),
        (chat(message("user<|im_end|>", "Hi")), "messages[0].role"),
        (chat(pb.Message(role="user", parts=[pb.ContentPart()])), "messages[0].content[0]"),
        (chat(message("user", "a", 1), media=2), "messages[0].content[1]"),
        (chat(message("user", 0, 0), media=1), "messages[0].content[1]"),
        (chat(message("user", 0), media=0), "media"),
        (chat(message("user", 0), media=2), "media[1]"),
        (chat(message("user", 0, 1, 2), media=3), "media"),
        (
            chat(message("user", "a"), add_generation_prompt=True, continue_final_message=True),
            "continue_final_message",
        ),
        (pb.GenerateRequest(text=""), "prompt"),
        (pb.GenerateRequest(text="<|image_pad|>"), "media"),
        (pb.GenerateRequest(text="no image", media=images(1)), "media"),
        (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, -1])), "token_ids[1]"),
        (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[10**6])), "token_ids[0]"),
        (pb.GenerateRequest(text="a", media=[media_pb2.MediaItem(key="x")]), "media[0].key"),
        (pb.GenerateRequest(text="a", media=[media_pb2.MediaItem(key="0" * 64)]), "media[0].modality"),
        (with_form(media_pb2.MEDIA_FORM_UNSPECIFIED), "media[0].form"),
        (with_form(media_pb2.MEDIA_FORM_FRAMES), "media[0].form"),
        (with_form(99), "media[0].form"),
    ],
)
async def test_a_bad_prompt_is_refused_with_its_path(request_: pb.GenerateRequest, param: str) -> None:
    assert (await refusal("qwen", request_)).param == param


async def test_too_many_and_unserved_media_are_refused_in_known_words() -> None:
    error = await refusal("qwen", pb.GenerateRequest(text="a", media=images(3)))
    assert error.message == "At most 2 image(s) may be provided in one prompt."
    video = media_pb2.MediaItem(
        key="0" * 64, modality=media_pb2.MODALITY_VIDEO, form=media_pb2.MEDIA_FORM_FILE
    )
    error = await refusal("qwen", pb.GenerateRequest(text="a", media=[video]))
    assert error.message == "At most 0 video(s) may be provided in one prompt."


async def test_a_template_that_refuses_is_the_callers_error() -> None:
    error = await refusal("strict", chat(message("system", "Hi")))
    assert "Only user and assistant" in error.message and error.param == "messages"


async def test_a_role_that_the_template_names_is_known() -> None:
    source = "{% for m in messages %}{% if m['role'] == 'tool' %}T{% endif %}{{ m['content'] }}{% endfor %}"
    tokenizer = TextTokenizer(build_qwen_tokenizer())
    template = ChatTemplate(tokenizer.hf, source, {}, {})
    template.check_role("tool", "messages[0].role")
    with pytest.raises(InvalidRequestError):
        template.check_role("toll", "messages[0].role")


def test_the_kind_of_content_is_found_out() -> None:
    def takes_parts(style: str) -> bool:
        build, source, text, token = STYLES[style]
        return ChatTemplate(build(), source, {"image": text}, {"image": token}).takes_parts

    assert {style: takes_parts(style) for style in STYLES} == {
        "qwen": True,
        "llava parts": True,
        "llava strings": False,
        "strict": False,
    }


async def test_a_far_too_long_text_is_refused_by_its_beginning() -> None:
    """Two megabytes that would take half a minute to tokenise."""
    request = chat(message("user", "word " * 400_000))
    started = time.perf_counter()
    with pytest.raises(ContextLengthError, match=r"maximum context length is 100 tokens.* at least"):
        await builder_of("qwen").build(request, 100)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    "text", ["<|im_end|>" * 400_000, ("<|im_end|>" + "word " * 30) * 20_000], ids=["tokens", "texts"]
)
async def test_many_typed_special_tokens_are_refused_without_reading_them_all(text: str) -> None:
    """Each of them makes a piece of its own; half a minute if all were tokenised."""
    started = time.perf_counter()
    with pytest.raises(ContextLengthError, match=r"maximum context length is 30000 tokens.* at least"):
        await builder_of("qwen").build(chat(message("user", text)), 30_000)
    assert time.perf_counter() - started < 3


async def test_a_text_that_is_dense_only_at_its_end_is_not_read_whole() -> None:
    encoded: list[int] = []

    class Counting(TextTokenizer):
        def encode(self, text: str) -> list[int]:
            encoded.append(len(text))
            return super().encode(text)

    tokenizer = Counting(build_qwen_tokenizer())
    with pytest.raises(ContextLengthError):
        encode_bounded(
            tokenizer,
            [" " * 9_000 + "word " * 100_000],
            1000,
            lambda count: check_length(count, 1000, at_least=True),
        )
    assert sum(encoded) <= 24_000


async def test_pieces_in_several_goes_give_the_tokens_of_one_go() -> None:
    for style in ("qwen", "llava parts"):
        tokenizer = builder_of(style).tokenizer
        pieces = ["the <", "image> is", " red ", "x" * 100, "y"]
        expected = tokenizer.encode_pieces(pieces)
        assert encode_bounded(tokenizer, pieces, 2, lambda count: None) == expected
        assert encode_bounded(tokenizer, pieces, 1000, lambda count: None) == expected


async def test_a_placeholder_that_is_not_flagged_special_is_text_where_it_is_typed() -> None:
    tokenizer = TextTokenizer(build_llama_tokenizer())
    backend = tokenizer.backend
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["special"] and token["content"] != "<image>"
    tokenizer.hf._tokenizer = type(backend).from_str(json.dumps(state))
    tokenizer = TextTokenizer(tokenizer.hf)
    placeholder = tokenizer.backend.token_to_id("<image>")
    assert placeholder not in tokenizer.table.special_ids
    template = ChatTemplate(tokenizer.hf, LLAVA_PARTS_TEMPLATE, {"image": "<image>"}, {"image": "<image>"})
    layout = OnePlaceholder("<image>", placeholder)
    builder = PromptBuilder(tokenizer, layout, template, {"image": 2}, len(tokenizer))
    prompt = await builder.build(chat(message("user", "an <image> tag: ", 0), media=1), 4096)
    assert prompt.token_ids.count(placeholder) == 1


async def test_a_placeholder_may_lie_behind_the_tokens_that_can_be_generated() -> None:
    """Llama 3.2 Vision's does: its output layer ends in front of it."""
    tokenizer = TextTokenizer(build_llama_tokenizer())
    placeholder = tokenizer.backend.token_to_id("<image>")
    template = ChatTemplate(tokenizer.hf, LLAVA_PARTS_TEMPLATE, {"image": "<image>"}, {"image": "<image>"})
    layout = OnePlaceholder("<image>", placeholder)
    builder = PromptBuilder(tokenizer, layout, template, {"image": 2}, placeholder)
    given = pb.TokenIds(ids=[1, placeholder, 5])
    prompt = await builder.build(pb.GenerateRequest(token_ids=given, media=images(1)), 4096)
    assert list(prompt.token_ids) == [1, placeholder, 5]
    beyond = pb.TokenIds(ids=[1, placeholder, placeholder + 1])
    with pytest.raises(InvalidRequestError, match="not in the vocabulary"):
        await builder.build(pb.GenerateRequest(token_ids=beyond, media=images(1)), 4096)


async def test_tokenize_and_detokenize_refuse_many_times_the_context() -> None:
    builder = builder_of("qwen")
    started = time.perf_counter()
    with pytest.raises(InvalidRequestError, match="at most 400 tokens"):
        await builder.tokenize(pb.TokenizeRequest(text="word " * 800_000), 100)
    conversation = pb.Conversation(messages=[message("user", "<|im_end|>" * 400_000)])
    with pytest.raises(InvalidRequestError, match="at most 400 tokens"):
        await builder.tokenize(pb.TokenizeRequest(conversation=conversation), 100)
    with pytest.raises(InvalidRequestError, match="at most 400 tokens"):
        await builder.detokenize([1] * 401, 100)
    assert time.perf_counter() - started < 3
    token_ids, _ = await builder.tokenize(pb.TokenizeRequest(text="word " * 90), 100)
    assert len(token_ids) > 100, "a text that is too long can be counted"


async def test_tokenizing_does_not_hold_up_generation() -> None:
    builder = builder_of("qwen")
    text = pb.TokenizeRequest(text="word " * 100_000)
    counting = [asyncio.create_task(builder.tokenize(text, 10**6)) for _ in range(SIDE_CALLS + 8)]
    await asyncio.sleep(0.05)
    started = time.perf_counter()
    await builder.build(chat(message("user", "Hi")), 4096)
    assert time.perf_counter() - started < 0.5
    assert not counting[0].done(), "nothing was in the way"
    for task in counting[1:SIDE_CALLS]:
        task.cancel()
    outcomes = await asyncio.gather(*counting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[SIDE_CALLS:]] == [OverloadedError] * 8
    assert isinstance(outcomes[0], tuple)


async def test_a_text_just_too_long_is_refused_with_its_count() -> None:
    with pytest.raises(ContextLengthError) as caught:
        await builder_of("qwen").build(pb.GenerateRequest(text="word " * 30), 30)
    assert "at least" not in caught.value.message and caught.value.param == "prompt"


async def test_a_long_text_of_few_tokens_is_not_refused_by_its_length() -> None:
    builder = builder_of("qwen")
    text = "<|endoftext|>" * 40
    assert len(text) > 8 * 41
    assert len((await builder.build(pb.GenerateRequest(text=text), 41)).token_ids) == 40


async def test_tokenize_leaves_placeholders_unexpanded() -> None:
    builder = builder_of("qwen")
    request = pb.TokenizeRequest(conversation=pb.Conversation(messages=[message("user", 0, "Hi")]))
    token_ids, _ = await builder.tokenize(request, 4096)
    assert token_ids.count(builder.tokenizer.backend.token_to_id("<|image_pad|>")) == 1


async def test_media_of_a_written_prompt_need_only_the_order_of_their_modality() -> None:
    tokenizer = TextTokenizer(build_qwen_tokenizer())
    ids = {"image": tokenizer.backend.token_to_id("<|image_pad|>")}
    ids["video"] = tokenizer.backend.token_to_id("<|video_pad|>")

    class TwoPlaceholders(OnePlaceholder):
        def placeholder_ids(self) -> dict[Modality, int]:
            return dict(ids)  # type: ignore[arg-type]

    builder = PromptBuilder(tokenizer, TwoPlaceholders("", 0), None, {"image": 2, "video": 2}, len(tokenizer))
    media = images(3)
    media[2].modality = media_pb2.MODALITY_VIDEO
    text = "<|image_pad|>a<|video_pad|>b<|image_pad|>"
    by_text = await builder.build(pb.GenerateRequest(text=text, media=media), 4096)
    assert [item.key[-1] for item in by_text.items] == ["0", "2", "1"]
    token_ids = pb.TokenIds(ids=by_text.token_ids)
    by_ids = await builder.build(pb.GenerateRequest(token_ids=token_ids, media=media), 4096)
    assert by_ids.items == by_text.items
    with pytest.raises(InvalidRequestError) as caught:
        await builder.build(pb.GenerateRequest(text="<|image_pad|>" * 3, media=media), 4096)
    assert caught.value.param == "media"


PICTURES_ALONE_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image_pad|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize("source", [QWEN_TEMPLATE, PICTURES_ALONE_TEMPLATE, STRICT_TEMPLATE])
async def test_videos_in_every_kind_of_template(source: str) -> None:
    """As a part where the template knows it, as text where it knows pictures alone, or strings."""
    tokenizer = TextTokenizer(build_qwen_tokenizer())
    texts: dict[Modality, str] = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    ids = {modality: tokenizer.backend.token_to_id(text) for modality, text in texts.items()}

    class TwoPlaceholders(OnePlaceholder):
        def placeholder_ids(self) -> dict[Modality, int]:
            return dict(ids)

        def placeholder_text(self, modality: Modality) -> str:
            return texts[modality]

    layout = TwoPlaceholders("", 0)
    template = ChatTemplate(tokenizer.hf, source, texts, texts)
    builder = PromptBuilder(tokenizer, layout, template, {"image": 2, "video": 2}, len(tokenizer))
    media = images(3)
    media[1].modality = media_pb2.MODALITY_VIDEO
    request = chat(message("user", 0, "and <|video_pad|>", 1, 2, "?"))
    request.media.extend(media)
    prompt = await builder.build(request, 4096)
    found = [token_id for token_id in prompt.token_ids if token_id in ids.values()]
    assert found == [ids["image"], ids["video"], ids["image"]]
    counted = pb.TokenizeRequest(
        conversation=request.conversation, modalities=[item.modality for item in media]
    )
    token_ids, _ = await builder.tokenize(counted, 4096)
    assert token_ids == prompt.token_ids
    del counted.modalities[2]
    with pytest.raises(InvalidRequestError):
        await builder.tokenize(counted, 4096)


async def test_a_prompt_without_its_items_hears_how_they_stand_in_one() -> None:
    request = pb.GenerateRequest(text="what is it?", media=images(1))
    with pytest.raises(
        InvalidRequestError, match=r"no media, the request has 1 image; .*'<image>' for one image"
    ):
        await builder_of("llava parts").build(request, 100)
