"""The stock parts the micro models are assembled from: tokenizer, processor and configs."""

from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from twohop.micro.layout import (
    BOS,
    D_MODEL,
    EOS,
    IMAGE_TOKENS,
    NUM_BLOCKS,
    PAD,
    PATCH_SIZE,
    UNKNOWN,
    vocabulary,
)
from twohop.micro.templates import IMAGE_PLACEHOLDER
from twohop.micro.world import PICTURE_SIZE


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: whole words split at whitespace, `<s>` in front, with offsets."""
    ids = {word: index for index, word in enumerate(vocabulary())}
    core = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    core.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE_PLACEHOLDER],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=128,
    )


def build_processor() -> LlavaProcessor:
    """Return the processor: the tokenizer, and pictures resized to 24 x 24 without torchvision."""
    size = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
    images = CLIPImageProcessorPil(size=size, crop_size=size)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def language_config() -> LlamaConfig:
    """Return the backbone's config: 8 blocks, width 64, 4 heads over 2 key-value heads."""
    words = vocabulary()
    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=D_MODEL,
        intermediate_size=2 * D_MODEL,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        pad_token_id=words.index(PAD),
        bos_token_id=words.index(BOS),
        eos_token_id=words.index(EOS),
        dtype="float32",
    )


def vision_config() -> CLIPVisionConfig:
    """Return the tower's config: 2 blocks, width 48, four 12-pixel patches."""
    return CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=PICTURE_SIZE,
        patch_size=PATCH_SIZE,
    )


def vlm_config() -> LlavaConfig:
    """Return the config of the vision-language models: tower, projector and the backbone."""
    return LlavaConfig(
        vision_config=vision_config(),
        text_config=language_config(),
        image_token_index=vocabulary().index(IMAGE_PLACEHOLDER),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        dtype="float32",
    )


def generation_config() -> GenerationConfig:
    """Return how all of them generate: greedily, until `</s>`."""
    words = vocabulary()
    return GenerationConfig(
        bos_token_id=words.index(BOS),
        eos_token_id=words.index(EOS),
        pad_token_id=words.index(PAD),
        max_new_tokens=8,
    )
