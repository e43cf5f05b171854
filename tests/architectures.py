"""What is known of each architecture of transformers that the sweep cannot run, or of which not all is seen.

`test_observe_sweep` holds each list: it fails when one that is listed here begins to work, and when another fails.
Architectures that are in no list are seen wholly, and attend through Clearhead under attn_implementation="clearhead".
"""


def listed(names: str) -> list[str]:
    """The model types in a text."""
    return names.split()


# not run, by reason

LIBRARY = listed("""
    conditional_detr dab-detr deformable_detr detr dinat edgetam edgetam_vision_model fast_vlm gemma3n
    gemma3n_vision higgs_audio_v2_tokenizer inkling_mm_model layoutlmv2 omdet-turbo pe_audio_video
    pe_audio_video_encoder pe_video pe_video_encoder perception_lm table-transformer timm_backbone
""")
"""They need a library that the tests do not have (timm, natten, detectron2, torchaudio, scipy)."""

LARGE = listed("""
    align bark blt clap cvt dac deimv2 depth_pro dots3_note_text edgetam_video efficientnet encodec
    fastspeech2_conformer fastspeech2_conformer_with_hifigan florence2 hgnet_v2 mobilenet_v1 mobilevitv2
    muse_glimmer neucodec pe_audio pe_audio_encoder perceiver phi4_multimodal pp_doclayout_v4
    pp_ocrv5_mobile_rec pp_ocrv5_server_rec qwen3_asr qwen3_asr_encoder qwen3_omni_moe_thinker sam2
    sam2_hiera_det_model sam2_video sam2_vision_model sam3_tracker_video sam3_video seamless_m4t seamless_m4t_v2
    univnet unlimited_ocr uvdoc vibevoice vibevoice_acoustic_tokenizer vibevoice_acoustic_tokenizer_decoder
    vibevoice_acoustic_tokenizer_encoder vibevoice_asr vits xcodec xcodec2
""")
"""More than 3 million parameters, made small by these rules: most of them convolutions."""

CONFIGURATION = listed("""
    bit chameleon cohere_compass cohere_compass_text csm d_fine dbrx deepseek_ocr2 diffusion_gemma dots1
    dots3_note efficientloftr emu3 fun_asr_nano gemma3n_text granite4_vision granite_speech granite_speech5_ctc
    granite_speech5_encoder granite_speech_plus informer janus lfm2_moe lw_detr mamba2 mimi mimi_decoder molmo2
    moonshine_streaming muse_spark muse_spark_audio musicgen musicgen_melody neomme pocket_tts_audio_tokenizer
    pocket_tts_audio_tokenizer_decoder pp_doclayout_v3 pp_ocrv6_medium_det qwen4_exp qwen4_exp_text
    t5gemma2_encoder time_series_transformer tvp voxtral_realtime_text zamba
""")
"""Their configuration, made small by these rules, is refused or cannot be built."""

INPUTS = listed("""
    audio-spectrogram-transformer autoformer blip-2 blip_2_qformer clvp decision_transformer dia donut-swin
    ernie4_5_vl_moe esm fun_asr_nano_encoder gemma3n_audio gemma4_audio gemma4_vision glm_image_vqmodel
    glmasr_encoder grounding-dino hunyuan_vl hunyuan_vl_text idefics inkling2_vision instructblip
    instructblipvideo kimi_k25_vision kosmos-2 kyutai_speech_to_text levit lightglue longcat_flash lxmert
    mask2former mimi_encoder minicpm_ocr_vision minicpmv4_7_vision mm-grounding-dino muse_glimmer_assistant
    nemo_speechlm nemotron_h oneformer patchtsmixer patchtst pi0 pocket_tts_audio_tokenizer_encoder
    pp_ocrv6_small_det pp_ocrv6_small_rec pp_ocrv6_tiny_rec qwen2_5_omni_thinker rt_detr rt_detr_v2 sam
    sam3_tracker sam_hq seggpt siglip2 siglip2_vision_model speech_to_text speecht5 step3p7 swin textnet timesfm
    timesfm2_5 timesformer video_llama_3_vision videomae vivit voxtral_realtime voxtral_realtime_encoder
    wav2vec2-bert xclip xlstm xmod
""")
"""They do not run on inputs that are made by these rules."""

NAN = listed("""
    nemotron3_5_asr nemotron_asr_streaming nemotron_asr_streaming_encoder rf_detr
""")
"""Eager attention gives NaN, so there is no oracle."""

NOT_RUN = {"library": LIBRARY, "large": LARGE, "configuration": CONFIGURATION, "inputs": INPUTS, "nan": NAN}

# what is seen

NO_ATTENTION = listed("""
    convnext convnextv2 dinov3_convnext falcon_mamba fnet focalnet mamba mobilenet_v2 poolformer regnet resnet
    sam3_lite_text_text_model
""")
"""Convolutions, Fourier transforms and state spaces: nothing is seen, and nothing is listed."""

PARTLY = listed("""
    axk2 bailing_hybrid convbert deepseek_v32 deepseek_v4 evolla glm5_next glm5_next_text glm_moe_dsa groupvit hy_v4
    inkling2 inkling2_text kimi_linear led mgp-str minimax mistral_large4 mistral_large4_text pegasus_x
""")
"""Some of their attention is seen, the rest is listed in `unseen`: that over sampled points, gates of pooling, linear
attention (BailingHybrid, Kimi Linear, MiniMax), and adapters that had nothing to attend to (Evolla)."""

LISTED = listed("""
    longformer mra reformer rwkv swiftformer yoso
""")
"""None of their attention is seen; all of it is listed in `unseen`."""

# under attn_implementation="clearhead"

REFUSED = listed("""
    axk2 big_bird bigbird_pegasus blip bloom bros canine codegen convbert deepseek_v32 deepseek_v4 flava
    glm_moe_dsa gpt_neox_japanese groupvit hy_v4 ibert imagegpt inkling2 inkling2_text layoutlmv3 led lilt
    longformer luke megatron-bert mistral_large4 mistral_large4_text mpnet mpt mvp nystromformer rembert
    roformer squeezebert tapas vilt visual_bert xglm
""")
"""Refused in one line by Clearhead."""

UNKNOWN_NAME = listed("""
    data2vec-vision deepseek_vl_hybrid falcon git gpt_neo gptj sam_hq_vision_model sam_vision_model
""")
"""They look for their attention in a table of their own: transformers ends in KeyError: 'clearhead'."""

OWN = listed("""
    cpmant deberta deberta-v2 flaubert fsmt funnel glpn hiera maskformer-swin mgp-str mobilevit mra openai-gpt
    prophetnet pvt pvt_v2 reformer rwkv sew-d swiftformer swin2sr swinv2 vitdet wavlm xlm xlnet yoso
""")
"""They take no attention function, whatever its name, and attend as ever."""

BOTH = listed("""
    aimv2 aimv2_vision_model bridgetower longt5 maskformer pegasus_x siglip siglip_vision_model
""")
"""Some of their attention is Clearhead's; the rest is written by hand, or is torch's."""

# head importance

NO_SCORES = [
    *NO_ATTENTION,
    *LISTED,
    "nystromformer",  # adds to its attention's output in place
    "prophetnet",  # runs its decoder on more samples than its encoder
]
"""`head_importance` refuses them in one line."""

RANDOM = ["reformer"]
"""They draw from the clock when they train, watched or not."""
